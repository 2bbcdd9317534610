// SPDX-License-Identifier: GPL-2.0

//! Bugs made on purpose, one for each parameter: a kernel that overlooks one of them proves nothing
//! about rustai.

use core::hint::black_box;
use kernel::{new_mutex, new_spinlock, prelude::*, sync::Mutex, sync::SpinLock};

module! {
    type: Planted,
    name: "planted",
    authors: ["The rustai developers"],
    description: "Bugs made on purpose",
    license: "GPL",
    params: {
        bug: u32 {
            default: 0,
            description: "1 use after free, 2 lock order, 3 sleep in atomic context, 4 leak",
        },
    },
}

#[pin_data]
struct Planted {
    #[pin]
    first: Mutex<u32>,
    #[pin]
    second: Mutex<u32>,
    #[pin]
    spin: SpinLock<u32>,
}

impl Planted {
    fn use_after_free() -> Result {
        let bytes = KBox::new([1u8; 128], GFP_KERNEL)?;
        let at: *const u8 = black_box(bytes.as_ptr());
        drop(bytes);
        // SAFETY: There is none; this is the bug.
        black_box(unsafe { at.add(64).read_volatile() });
        Ok(())
    }

    fn lock_order(&self) {
        {
            let _first = self.first.lock();
            let _second = self.second.lock();
        }
        let _second = self.second.lock();
        let _first = self.first.lock();
    }

    fn sleep_in_atomic(&self) {
        let _spin = self.spin.lock();
        let _first = self.first.lock();
    }

    fn leak() -> Result {
        for _ in 0..8 {
            core::mem::forget(black_box(KBox::new([1u8; 200], GFP_KERNEL)?));
        }
        Ok(())
    }
}

impl kernel::InPlaceModule for Planted {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(&this in Self {
            first <- new_mutex!(0, "planted::first"),
            second <- new_mutex!(0, "planted::second"),
            spin <- new_spinlock!(0, "planted::spin"),
            _: {
                // SAFETY: All fields are initialized by now.
                let me = unsafe { this.as_ref() };
                match module_parameters::bug.value() {
                    1 => Self::use_after_free()?,
                    2 => me.lock_order(),
                    3 => me.sleep_in_atomic(),
                    4 => Self::leak()?,
                    _ => {}
                }
            },
        })
    }
}
