//! The kernels that a device has loaded, by name.

use crate::{
    Device, DeviceError,
    driver::{Function, after_capture, check},
    images::{self, KernelSources},
    ops::Slots,
};
use cudarc::driver::{
    result,
    sys::{CUfunction, CUfunction_attribute, CUmodule, CUresult},
};
use rustai_abi::DType;
use std::{
    ffi::CString,
    sync::{Arc, OnceLock},
};

/// Loaded kernels. What they do is in the methods, which `ops` implements.
///
/// A kernel is looked up by its name once: when a program that has it is made ready (`ready_*`), else when it is first launched.
/// Later launches take no lock and make no text.
#[derive(Debug)]
pub struct Kernels {
    modules: Arc<Modules>,
    pub(crate) slots: Slots,
}

/// The place of one kernel that may have been looked up.
#[derive(Debug, Default)]
pub(crate) struct Slot(OnceLock<Option<Handle>>);

/// The places of kernels that there are for many types of weights.
#[derive(Debug)]
pub(crate) struct PerType<T>([T; TYPES]);

/// More than the number of any type.
const TYPES: usize = 64;

impl<T: Default> Default for PerType<T> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| T::default()))
    }
}

impl<T> std::ops::Index<DType> for PerType<T> {
    type Output = T;

    fn index(&self, dtype: DType) -> &T {
        // PANIC: the numbers of GGUF's types are below 64.
        &self.0[dtype as usize]
    }
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
// SAFETY: as above.
unsafe impl Sync for Handle {}

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
    pub fn from_images<I: AsRef<[u8]>>(device: &Device, architecture: u32, images: &[I]) -> Result<Self, DeviceError> {
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
                        reason: format!(
                            "{}; update the driver, build the kernels for this device (kernels-cuda/check.py --build), or use \
                             the CPU",
                            DeviceError::of("cuModuleLoadData", error)
                        ),
                    });
                }
                Err(error) => return Err(DeviceError::of("cuModuleLoadData", error)),
            }
        }
        Ok(Self { modules: Arc::new(loaded), slots: Slots::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.modules.device
    }

    /// Bytes of the images: their code hardly takes more of the device's memory.
    pub fn code_bytes(&self) -> u64 {
        self.modules.image_bytes
    }

    /// The kernel that belongs to a slot. `name` and the dynamic shared memory of its launches are the same for a slot always.
    pub(crate) fn get(&self, slot: &Slot, name: impl Fn() -> String, shared: u32) -> Result<Function<'_>, DeviceError> {
        self.find(slot, &name, shared)?.ok_or_else(|| DeviceError::MissingKernel(name()))
    }

    /// As [`get`](Self::get), or `None` if the images have no such kernel.
    pub(crate) fn find(
        &self,
        slot: &Slot,
        name: impl Fn() -> String,
        shared: u32,
    ) -> Result<Option<Function<'_>>, DeviceError> {
        let found = match slot.0.get() {
            Some(found) => *found,
            None => {
                let found = self.look_up(&name(), shared)?;
                *slot.0.get_or_init(|| found)
            }
        };
        Ok(found.map(|handle| Function { handle: handle.0, code: &self.modules }))
    }

    fn look_up(&self, name: &str, shared: u32) -> Result<Option<Handle>, DeviceError> {
        self.modules.device.bind()?;
        let Ok(c_name) = CString::new(name) else { return Ok(None) };
        for module in &self.modules.modules {
            // SAFETY: the module is loaded.
            let function = match unsafe { result::module::get_function(module.0, c_name.clone()) } {
                Ok(function) => function,
                Err(error) if error.0 == CUresult::CUDA_ERROR_NOT_FOUND => continue,
                Err(error) => return Err(DeviceError::of("cuModuleGetFunction", error)),
            };
            // Above this much, a kernel has to be told (CUDA C++ Programming Guide, "Shared Memory").
            if shared > 48 << 10 {
                let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the function is loaded.
                let set = unsafe { result::function::set_function_attribute(function, attribute, shared as i32) };
                check("cuFuncSetAttribute", set)?;
            }
            return Ok(Some(Handle(function)));
        }
        Ok(None)
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
        let (device, modules) = (self.device.clone(), std::mem::take(&mut self.modules));
        after_capture(move || {
            // Kernels that run must be over; errors have no one to go to.
            let _ = device.synchronize();
            for module in modules {
                // SAFETY: the module is loaded, and functions are handed out to this crate's launches only.
                let _ = unsafe { result::module::unload(module.0) };
            }
        });
    }
}
