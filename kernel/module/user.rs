// SPDX-License-Identifier: GPL-2.0

//! Structs and arrays of the interface, to and from the caller's memory.
//!
//! Every struct is copied once and judged on the copy; no byte of it is read twice.

use crate::abi::{Errno, Wire, MAX_STRUCT};
use kernel::{
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// No struct of this version is longer.
const LONGEST: usize = 128;

/// The kernel's form of an error of the interface.
pub(crate) fn error(errno: Errno) -> Error {
    Error::from_errno(-errno.raw())
}

/// Reads a struct that starts with its size.
pub(crate) fn read<T: Wire>(arg: usize) -> Result<T> {
    const { assert!(T::SIZE <= LONGEST) };
    let mut head = [0u8; 8];
    UserSlice::new(UserPtr::from_addr(arg), head.len())
        .reader()
        .read_slice(&mut head)?;
    let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
    if (size as usize) < T::SIZE {
        return Err(EINVAL);
    }
    if size > MAX_STRUCT {
        return Err(E2BIG);
    }
    let mut bytes = [0u8; LONGEST];
    bytes[..8].copy_from_slice(&head);
    let rest = UserPtr::from_addr(arg).wrapping_byte_add(8);
    let mut reader = UserSlice::new(rest, size as usize - 8).reader();
    reader.read_slice(&mut bytes[8..T::SIZE])?;
    let mut tail = [0u8; 64];
    while !reader.is_empty() {
        let chunk = reader.len().min(tail.len());
        reader.read_slice(&mut tail[..chunk])?;
        if tail[..chunk].iter().any(|&byte| byte != 0) {
            return Err(E2BIG);
        }
    }
    T::read(&bytes).ok_or(EINVAL)
}

/// Reads a struct that is written back in the end. One that cannot be written fails here, before
/// anything has changed.
pub(crate) fn read_for_answer<T: Wire>(arg: usize) -> Result<T> {
    let value = read(arg)?;
    write(arg, &value)?;
    Ok(value)
}

/// Writes a struct back to where it was read from.
pub(crate) fn write<T: Wire>(arg: usize, value: &T) -> Result {
    let mut bytes = [0u8; LONGEST];
    if !value.write(&mut bytes) {
        return Err(EINVAL);
    }
    UserSlice::new(UserPtr::from_addr(arg), T::SIZE)
        .writer()
        .write_slice(&bytes[..T::SIZE])
}

/// Reads element `index` of an array at a user address.
pub(crate) fn element<T: Wire>(address: u64, index: usize) -> Result<T> {
    const { assert!(T::SIZE <= LONGEST) };
    let address = usize::try_from(address).map_err(|_| EFAULT)?;
    let at = UserPtr::from_addr(address).wrapping_byte_add(index * T::SIZE);
    let mut bytes = [0u8; LONGEST];
    UserSlice::new(at, T::SIZE)
        .reader()
        .read_slice(&mut bytes[..T::SIZE])?;
    T::read(&bytes).ok_or(EINVAL)
}
