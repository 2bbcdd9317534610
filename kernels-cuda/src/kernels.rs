//! The kernels that a device has loaded, by name.

use crate::{
    Device, DeviceError,
    driver::{Function, check},
    images::{self, KernelSources},
};
use cudarc::driver::{
    result,
    sys::{CUfunction, CUfunction_attribute, CUmodule, CUresult},
};
use std::{
    collections::HashMap,
    ffi::CString,
    sync::{Arc, Mutex},
};

/// Loaded kernels. What they do is in the methods, which `ops` implements.
#[derive(Debug)]
pub struct Kernels {
    modules: Arc<Modules>,
    functions: Mutex<HashMap<String, Handle>>,
}

/// Loaded images, which go when nothing uses their kernels anymore.
#[derive(Debug)]
pub(crate) struct Modules {
    device: Device,
    /// What the images were compiled for, as `10 * major + minor`.
    architecture: u32,
    modules: Vec<Module>,
    image_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct Handle(CUfunction);

// SAFETY: a function's handle is a name that the driver may be given from any thread; its module is beside it.
unsafe impl Send for Handle {}

#[derive(Debug)]
struct Module(CUmodule);

// SAFETY: a module's handle is a name that the driver may be given from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Kernels {
    /// Loads the kernels for the device's architecture: those that the program carries, or such as `sources` names. The first
    /// time on a host without any, they are compiled, which takes a minute of its cores.
    ///
    /// # Errors
    /// [`DeviceError::NoKernels`] if there are none; [`DeviceError::Driver`].
    pub fn load(device: &Device, sources: &KernelSources) -> Result<Self, DeviceError> {
        let (architecture, images) = images::for_device(device.info(), sources)?;
        Self::from_images(device, architecture, &images)
    }

    /// Loads kernels from images: cubins, fatbins, or PTX that ends with a zero byte. They were compiled for `architecture`, as
    /// `10 * major + minor`: 80 for `compute_80` as for `sm_80`, on whatever device they run.
    ///
    /// # Errors
    /// [`DeviceError::NoKernels`] if the driver says that they are not for this device; [`DeviceError::Driver`].
    pub fn from_images<I: AsRef<[u8]>>(
        device: &Device,
        architecture: u32,
        images: &[I],
    ) -> Result<Self, DeviceError> {
        device.bind()?;
        let image_bytes = images.iter().map(|image| image.as_ref().len() as u64).sum();
        let mut loaded = Modules { device: device.clone(), architecture, modules: Vec::new(), image_bytes };
        for image in images {
            // The driver looks for the end itself.
            let image = image.as_ref();
            if !images::is_whole(image) {
                return Err(DeviceError::Invalid("an image of kernels is cut off, or is none".into()));
            }
            // SAFETY: the image is whole: binary images hold their length, and text ends with a zero.
            match unsafe { result::module::load_data(image.as_ptr().cast()) } {
                Ok(module) => loaded.modules.push(Module(module)),
                Err(error)
                    if matches!(
                        error.0,
                        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
                            | CUresult::CUDA_ERROR_INVALID_PTX
                            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
                    ) =>
                {
                    return Err(DeviceError::NoKernels {
                        device: device.info().name.clone(),
                        capability: device.info().capability,
                        reason: DeviceError::of("cuModuleLoadData", error).to_string(),
                    });
                }
                Err(error) => return Err(DeviceError::of("cuModuleLoadData", error)),
            }
        }
        Ok(Self { modules: Arc::new(loaded), functions: Mutex::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.modules.device
    }

    /// Bytes of the images: their code hardly takes more of the device's memory.
    pub fn code_bytes(&self) -> u64 {
        self.modules.image_bytes
    }

    /// The kernel of this name; `shared` is the dynamic shared memory that launches ask for.
    pub(crate) fn get(&self, name: &str, shared: u32) -> Result<Function, DeviceError> {
        // A panic elsewhere cannot leave the map half changed.
        let mut functions = self.functions.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let function = match functions.get(name) {
            Some(function) => *function,
            None => {
                let function = self.find(name)?;
                functions.insert(name.to_owned(), function);
                function
            }
        };
        drop(functions);
        let function = Function { handle: function.0, code: Arc::clone(&self.modules) };
        // Above this much, a kernel has to be told (CUDA C++ Programming Guide, "Shared Memory").
        if shared > 48 << 10 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let set = unsafe { result::function::set_function_attribute(function.handle, attribute, shared as i32) };
            check("cuFuncSetAttribute", set)?;
        }
        Ok(function)
    }

    fn find(&self, name: &str) -> Result<Handle, DeviceError> {
        self.modules.device.bind()?;
        let missing = || DeviceError::MissingKernel(name.to_owned());
        let c_name = CString::new(name).map_err(|_| missing())?;
        for module in &self.modules.modules {
            // SAFETY: the module is loaded.
            match unsafe { result::module::get_function(module.0, c_name.clone()) } {
                Ok(function) => return Ok(Handle(function)),
                Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => {}
                Err(error) => return Err(DeviceError::of("cuModuleGetFunction", error)),
            }
        }
        Err(missing())
    }
}

impl Modules {
    /// Whether the kernels themselves wait for the one before them (`griddepcontrol.wait`), which code for compute capability
    /// 9.0 and later does. Other code must not begin earlier, on any device.
    pub(crate) fn waits(&self) -> bool {
        self.architecture >= 90
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        // Kernels that run must be over; errors have no one to go to.
        let _ = self.device.synchronize();
        for module in &self.modules {
            // SAFETY: the module is loaded, and functions are handed out to this crate's launches only.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}
