//! The error numbers of the interface, as Linux numbers them on x86-64, AArch64 and RISC-V.

use core::fmt;

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        /// Why an operation or a job failed. The discriminant is the Linux error number.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(clippy::upper_case_acronyms, reason = "these are their names")]
        #[repr(i32)]
        pub enum Errno {
            $(#[doc = $text] $name = $value,)*
        }

        impl Errno {
            /// All error numbers of the interface.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The error with this number, if the interface uses it.
            pub fn from_raw(raw: i32) -> Option<Self> {
                match raw { $($value => Some(Self::$name),)* _ => None }
            }

            /// The symbol, such as `EINVAL`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What it means on this interface.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

errnos! {
    EPERM = 1, "not permitted: the wrong node, a missing seal, or a class above the cap";
    ENOENT = 2, "nothing has this name: SETUP was not done, or the buffer, session or model is unknown";
    EINTR = 4, "a signal interrupted the wait";
    EBADF = 9, "the descriptor is not open";
    EAGAIN = 11, "no room at the moment: read completions, then try again";
    ENOMEM = 12, "no memory";
    EACCES = 13, "the buffer is read-only";
    EFAULT = 14, "a pointer leads outside the caller's memory";
    EBUSY = 16, "already set up, already attached, or still in use";
    EINVAL = 22, "a field has a value that is never right";
    ENFILE = 23, "the queue has no free context";
    EMFILE = 24, "the context has as many buffers as it may";
    ENOTTY = 25, "no such operation";
    EDOM = 33, "an index tensor holds a value out of its range";
    ERANGE = 34, "the range ends past its object";
    EPROTO = 71, "the sides do not agree: version, feature, or completion head";
    EOVERFLOW = 75, "a sum or product overflows";
    EMSGSIZE = 90, "the length is not what the shape needs, or the buffer holds no whole record";
    EOPNOTSUPP = 95, "the opcode or the element type is not known here";
    ENOTCONN = 107, "no server is attached and the policy is FAIL";
    ETIMEDOUT = 110, "the job's deadline passed";
    EALREADY = 114, "the job was completed before";
    ESTALE = 116, "the name is of an earlier generation";
    EDQUOT = 122, "the quota is used up";
    ECANCELED = 125, "canceled, or a job that it depends on failed";
    EOWNERDEAD = 130, "the server died";
    ENOTRECOVERABLE = 131, "the server died under the job more often than it is tried again";
    E2BIG = 7, "more than the limit, or an unknown tail that is not zero";
    ETIME = 62, "the time had passed";
}

impl Errno {
    /// The Linux error number, positive.
    pub const fn raw(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.meaning())
    }
}

impl core::error::Error for Errno {}
