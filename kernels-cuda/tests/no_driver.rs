//! A host without a driver. This is a test program of its own: once a driver library is open, a process keeps it.

use rustai_kernels_cuda::{Device, DeviceError, probe};

/// Passes on hosts with a GPU too: there the probe must find it.
#[test]
fn a_host_without_a_driver_is_told_so_and_nothing_panics() {
    match probe() {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => {
            assert!(!matches!(error, DeviceError::Driver { .. }), "{error:?}");
            let text = error.to_string();
            assert!(text.contains("use the CPU"), "{text}");
            assert_eq!(Device::open(0).map(|_| ()).unwrap_err(), error);
        }
    }
}
