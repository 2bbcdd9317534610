//! Finding devices, without ever assuming that there is a driver.

use super::{
    DeviceError, check,
    error::check_raw,
    stream::{CAPTURES, thread_captures},
};
use cudarc::driver::{
    CudaContext, result,
    sys::{self, CUdevice_attribute_enum as Attribute, CUresult},
};
use std::sync::{Arc, PoisonError};

/// The oldest driver interface that serves, as `cuDriverGetVersion` counts: CUDA 12.0, driver 525. Every function that this
/// crate calls is there.
pub const OLDEST_DRIVER: i32 = 12_000;

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number, counted from 0.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of level-2 cache.
    pub l2_cache: u32,
    /// The driver's interface version, as `1000 * major + 10 * minor`.
    pub driver: i32,
}

/// All devices of the host, the first first.
///
/// This is safe to call anywhere: it opens the driver library if there is one, and takes no device memory.
///
/// # Errors
/// [`DeviceError::NoDriver`], [`DeviceError::DriverTooOld`] or [`DeviceError::NoDevice`] where there is nothing to use.
pub fn probe() -> Result<Vec<DeviceInfo>, DeviceError> {
    // SAFETY: opening the library runs its initialisers, which is what the installer of a driver expects.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let mut driver = 0;
    // SAFETY: the pointer is to a local. The function needs no initialisation and is in every driver there is.
    check_raw("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut driver) })?;
    if driver < OLDEST_DRIVER {
        return Err(DeviceError::DriverTooOld { found: driver, needed: OLDEST_DRIVER });
    }
    match result::init() {
        Ok(()) => {}
        // A toolkit's library to link against, which is no driver.
        Err(error) if error.0 == CUresult::CUDA_ERROR_STUB_LIBRARY => return Err(DeviceError::NoDriver),
        Err(error) if error.0 == CUresult::CUDA_ERROR_NO_DEVICE => {
            return Err(DeviceError::NoDevice(DeviceError::of("cuInit", error).to_string()));
        }
        Err(error) => return Err(DeviceError::DriverDoesNotStart(DeviceError::of("cuInit", error).to_string())),
    }
    let count = check("cuDeviceGetCount", result::device::get_count())?;
    if count <= 0 {
        return Err(DeviceError::NoDevice("it counts 0".into()));
    }
    (0..count).map(|ordinal| describe(ordinal, driver)).collect()
}

fn describe(ordinal: i32, driver: i32) -> Result<DeviceInfo, DeviceError> {
    let device = check("cuDeviceGet", result::device::get(ordinal))?;
    let attribute = |attribute| {
        // SAFETY: the device comes from the driver.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        Ok::<_, DeviceError>(check("cuDeviceGetAttribute", value)?.max(0) as u32)
    };
    Ok(DeviceInfo {
        ordinal: ordinal as usize,
        name: check("cuDeviceGetName", result::device::get_name(device))?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        // SAFETY: as above.
        memory: check("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })? as u64,
        l2_cache: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        driver,
    })
}

/// A device that is ready for work.
#[derive(Clone, Debug)]
pub struct Device {
    info: Arc<DeviceInfo>,
    context: Arc<CudaContext>,
}

impl Device {
    /// Makes a device ready.
    ///
    /// # Errors
    /// Those of [`probe`]; [`DeviceError::UnknownDevice`] if there is no such device.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        let mut devices = probe()?;
        if ordinal >= devices.len() {
            return Err(DeviceError::UnknownDevice { ordinal, count: devices.len() });
        }
        let context = check("cuDevicePrimaryCtxRetain", CudaContext::new(ordinal))?;
        // SAFETY: nothing here uses cudarc's slices, whose order these events would keep; streams order our work.
        unsafe { context.disable_event_tracking() };
        Ok(Self { info: Arc::new(devices.swap_remove(ordinal)), context })
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Bytes of memory that are free now.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn free_memory(&self) -> Result<u64, DeviceError> {
        self.bind()?;
        Ok(check("cuMemGetInfo", result::mem_get_info())?.0 as u64)
    }

    /// Makes the device's context the calling thread's.
    pub(crate) fn bind(&self) -> Result<(), DeviceError> {
        check("cuCtxSetCurrent", self.context.bind_to_thread())
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Waits for all work of the device.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] while the calling thread captures a stream; [`DeviceError::Driver`], also of work that was begun
    /// earlier.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        if thread_captures() {
            return Err(DeviceError::Invalid(format!(
                "CUDA device {} cannot be awaited while this thread captures a stream; copy and wait before the capture or after it",
                self.info.ordinal
            )));
        }
        let _no_capture = CAPTURES.read().unwrap_or_else(PoisonError::into_inner);
        check("cuCtxSynchronize", self.context.synchronize())
    }
}
