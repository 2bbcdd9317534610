//! The kernels that a device has loaded, by name.

use crate::{
    Device, DeviceError,
    driver::{Function, check},
    images::{self, KernelSources},
};
use cudarc::driver::{
    result,
    sys::{CUfunction_attribute, CUmodule, CUresult},
};
use std::{collections::HashMap, ffi::CString, sync::Mutex};

/// Loaded kernels. What they do is in the methods, which `ops` implements.
#[derive(Debug)]
pub struct Kernels {
    device: Device,
    modules: Vec<Module>,
    functions: Mutex<HashMap<String, Function>>,
}

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
        let images = images::for_device(device.info(), sources)?;
        Self::from_images(device, &images)
    }

    /// Loads kernels from images: cubins, fatbins, or PTX that ends with a zero byte.
    ///
    /// # Errors
    /// [`DeviceError::NoKernels`] if the driver says that they are not for this device; [`DeviceError::Driver`].
    pub fn from_images<I: AsRef<[u8]>>(device: &Device, images: &[I]) -> Result<Self, DeviceError> {
        device.bind()?;
        let mut kernels = Self { device: device.clone(), modules: Vec::new(), functions: Mutex::default() };
        for image in images {
            // The driver looks for the end itself, so text must have one, and an empty image would have none at all.
            let image = image.as_ref();
            if image.is_empty() || (image.starts_with(b"//") && image.last() != Some(&0)) {
                return Err(DeviceError::Invalid("an image of kernels has no end".into()));
            }
            // SAFETY: the image is whole: binary images hold their length, and text ends with a zero.
            match unsafe { result::module::load_data(image.as_ptr().cast()) } {
                Ok(module) => kernels.modules.push(Module(module)),
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
        Ok(kernels)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
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
        // Above this much, a kernel has to be told (CUDA C++ Programming Guide, "Shared Memory").
        if shared > 48 << 10 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let set = unsafe { result::function::set_function_attribute(function.0, attribute, shared as i32) };
            check("cuFuncSetAttribute", set)?;
        }
        Ok(function)
    }

    fn find(&self, name: &str) -> Result<Function, DeviceError> {
        self.device.bind()?;
        let missing = || DeviceError::MissingKernel(name.to_owned());
        let c_name = CString::new(name).map_err(|_| missing())?;
        for module in &self.modules {
            // SAFETY: the module is loaded.
            match unsafe { result::module::get_function(module.0, c_name.clone()) } {
                Ok(function) => return Ok(Function(function)),
                Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => {}
                Err(error) => return Err(DeviceError::of("cuModuleGetFunction", error)),
            }
        }
        Err(missing())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // Kernels that run must be over; errors have no one to go to.
        let _ = self.device.synchronize();
        for module in &self.modules {
            // SAFETY: the module is loaded, and functions are handed out to this crate's launches only.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}
