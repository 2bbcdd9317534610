//! A device for tests on any host: the stand-in driver library, built from `emu/` and `cuda/`, and what tests want of it.
//!
//! The library has the driver's name inside, so that once it is open, the driver layer finds it in place of a real one.
//! Everything on the Rust side is thus the code that users run. A process keeps the library once it is open, so tests of
//! hosts without a driver belong into programs of their own.
//!
//! With `RUSTAI_TEST_DEVICE=1` in the environment the tests run on the host's own GPU instead. There is nothing to set or to
//! count there, so only tests of results can pass: `gpu.py` knows which.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::{
    collections::hash_map::DefaultHasher,
    env,
    ffi::{CStr, CString, c_char, c_int, c_long},
    fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

/// Beside an order: asynchronous copies and products are over when they begin, and not only when they are awaited.
pub const EARLY: u32 = 1 << 16;

/// Forwards, backwards, and three random orders, one of which lets a warp run ahead.
pub const SCHEDULES: [u32; 5] = [0, 1, EARLY | 2, 7, 12];

/// The stand-in, for one test at a time: its settings and its device are the process's.
#[derive(Debug)]
pub struct Standin {
    /// None on a real device.
    library: Option<&'static Library>,
    _turn: MutexGuard<'static, ()>,
}

impl Standin {
    /// Opens the library, building it in `folder` first if there is none of these sources yet, with all settings as they are
    /// at first. A test program gives `env!("CARGO_TARGET_TMPDIR")`.
    ///
    /// # Panics
    /// If there is no C++ compiler.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Library> = OnceLock::new();
        // A test that failed leaves nothing behind that the reset does not mend.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if env::var_os("RUSTAI_TEST_DEVICE").is_some() {
            return Self { library: None, _turn: turn };
        }
        let library = LIBRARY.get_or_init(|| {
            let path = build(folder.as_ref());
            // SAFETY: the library's initialisers only fill a table of kernels.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.expect("the stand-in opens")
        });
        let standin = Self { library: Some(library), _turn: turn };
        standin.reset();
        standin
    }

    /// Whether this is no stand-in, but the host's own GPU.
    pub fn is_real(&self) -> bool {
        self.library.is_none()
    }

    fn symbol<T>(&self, name: &CStr) -> Symbol<T> {
        let library = self.library.expect("this is asked of the stand-in only");
        // SAFETY: callers name the type that `emu/standin.cpp` gives the function.
        unsafe { library.get(name.to_bytes_with_nul()) }.expect("the stand-in has the function")
    }

    /// A setting; see `standin_set` in `emu/standin.cpp`. A real device runs threads in its own order.
    pub fn set(&self, name: &str, value: i64) {
        if self.is_real() && name == "schedule" {
            return;
        }
        let name = CString::new(name).unwrap();
        let set = self.symbol::<unsafe extern "C" fn(*const c_char, c_long) -> c_int>(c"standin_set");
        // SAFETY: the name ends with a zero.
        assert_eq!(unsafe { set(name.as_ptr(), value) }, 0, "no setting {name:?}");
    }

    /// Makes the `nth` call from now on of a function of the driver fail with this result; see `standin_fault` in
    /// `emu/standin.cpp`.
    pub fn fault(&self, function: &str, nth: i64, result: i32) {
        let name = CString::new(function).unwrap();
        let set = self.symbol::<unsafe extern "C" fn(*const c_char, c_long, c_int) -> c_int>(c"standin_fault");
        // SAFETY: the name ends with a zero.
        assert_eq!(unsafe { set(name.as_ptr(), nth, result) }, 0, "no fault {result} of call {nth} of {function}");
    }

    /// A counter; see `standin_get` in `emu/standin.cpp`.
    pub fn get(&self, name: &str) -> i64 {
        let name = CString::new(name).unwrap();
        let get = self.symbol::<unsafe extern "C" fn(*const c_char) -> c_long>(c"standin_get");
        // SAFETY: the name ends with a zero.
        unsafe { get(name.as_ptr()) }
    }

    /// Bytes of a kernel's parameters; `None` if there is no such kernel.
    pub fn parameter_bytes(&self, kernel: &str) -> Option<usize> {
        let name = CString::new(kernel).ok()?;
        let get = self.symbol::<unsafe extern "C" fn(*const c_char) -> c_int>(c"standin_args_bytes");
        // SAFETY: the name ends with a zero.
        usize::try_from(unsafe { get(name.as_ptr()) }).ok()
    }

    /// Runs a kernel of `emu/misuse.cu` in one block; returns why it failed, or nothing.
    ///
    /// # Panics
    /// If there is no such kernel.
    pub fn run(&self, kernel: &str, threads: u32, shared: u32) -> String {
        let name = CString::new(kernel).unwrap();
        let run = self.symbol::<unsafe extern "C" fn(*const c_char, u32, u32) -> c_int>(c"standin_run");
        // SAFETY: the name ends with a zero, and these kernels take no parameters.
        match unsafe { run(name.as_ptr(), threads, shared) } {
            0 => String::new(),
            719 => self.failure(),
            error => panic!("no kernel {kernel} ({error})"),
        }
    }

    /// Why a kernel failed.
    pub fn failure(&self) -> String {
        let failure = self.symbol::<unsafe extern "C" fn() -> *const c_char>(c"standin_failure");
        // SAFETY: the text ends with a zero and stays until the next launch.
        unsafe { CStr::from_ptr(failure()) }.to_string_lossy().into_owned()
    }

    /// The synchronisations that kernels met since the last call.
    pub fn sync_sites(&self) -> Vec<u32> {
        let mut sites = vec![0; 256];
        let call = self.symbol::<unsafe extern "C" fn(*mut u32, u32) -> c_int>(c"standin_sync_sites");
        // SAFETY: there is room for as many.
        let count = unsafe { call(sites.as_mut_ptr(), 256) };
        sites.truncate(count as usize);
        sites
    }

    /// Runs `work` under every schedule; once on a real device.
    pub fn in_every_order(&self, mut work: impl FnMut(u32)) {
        if self.is_real() {
            return work(0);
        }
        for schedule in SCHEDULES {
            self.set("schedule", i64::from(schedule));
            work(schedule);
        }
        self.set("schedule", 0);
    }

    /// Leaves out each synchronisation that `work` meets, one after the other, and expects it to go wrong in some order: to
    /// return `false` or to fail. `work` must be right as it is, and meet so many. A real device only shows that it is right.
    pub fn expect_every_sync_to_matter(&self, count: usize, mut work: impl FnMut() -> bool) {
        if self.is_real() {
            return assert!(work(), "wrong");
        }
        self.sync_sites();
        assert!(work(), "wrong with all synchronisations");
        let sites = self.sync_sites();
        assert_eq!(sites.len(), count, "synchronisations");
        for site in &sites {
            let mut noticed = false;
            for schedule in SCHEDULES {
                self.reset();
                self.set("schedule", i64::from(schedule));
                self.set("drop", i64::from(*site));
                noticed |= !work();
            }
            self.reset();
            let (kind, line) = (site >> 24, site & 0xff_ffff);
            assert!(noticed, "nothing notices that the synchronisation of kind {kind} in line {line} is missing");
        }
    }

    /// Settings as they are at first, and a device that works again.
    pub fn reset(&self) {
        if self.is_real() {
            return;
        }
        // SAFETY: the function has this type.
        unsafe { self.symbol::<unsafe extern "C" fn() -> c_int>(c"standin_reset")() };
    }
}

/// Builds the library in `folder` if there is none of these sources yet, and returns its path.
///
/// # Panics
/// If there is no C++ compiler.
pub fn build(folder: &Path) -> PathBuf {
    // One at a time: all of a process work in one folder.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the kernels");
    let mut sources: Vec<PathBuf> = ["emu", "cuda"]
        .iter()
        .flat_map(|folder| fs::read_dir(root.join(folder)).expect("the folder is there"))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            path.extension().is_some_and(|extension| ["cu", "cuh", "cpp", "h"].iter().any(|known| extension == *known))
        })
        .collect();
    sources.sort();
    let sanitize = env::var("RUSTAI_EMU_SANITIZE").unwrap_or_default();
    let options = options(&sanitize);
    let mut hasher = DefaultHasher::new();
    options.hash(&mut hasher);
    for source in &sources {
        source.file_name().hash(&mut hasher);
        fs::read(source).expect("a readable source").hash(&mut hasher);
    }
    // A program that is not made for it cannot open one with sanitizers: it has another name.
    let name = if sanitize.is_empty() { "standin" } else { "sanitized-standin" };
    let library = folder.join(format!("{name}-{:016x}.so", hasher.finish()));
    if library.exists() {
        return library;
    }

    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let work = folder.join(format!("standin-{}", std::process::id()));
    fs::create_dir_all(&work).expect("a folder for objects");
    let flags = |command: &mut Command| {
        command.args(&options).current_dir(root);
    };
    let mut running = Vec::new();
    for source in &sources {
        let language = match source.extension().and_then(|extension| extension.to_str()) {
            Some("cu" | "cpp") => "c++",
            _ => continue,
        };
        let object = work.join(source.with_extension("o").file_name().expect("a name"));
        let mut command = Command::new(&compiler);
        flags(&mut command);
        command.args(["-x", language, "-c"]).arg(source).arg("-o").arg(&object);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!(
                "the tests of the CUDA kernels need a C++ compiler, and {compiler} does not start: {error}; install g++"
            )
        });
        running.push((child, source, object));
    }
    let mut objects = Vec::new();
    for (mut child, source, object) in running {
        assert!(child.wait().expect("the compiler ends").success(), "{} does not compile", source.display());
        objects.push(object);
    }
    let linked = work.join("libcuda.so");
    let mut command = Command::new(&compiler);
    flags(&mut command);
    command.args(["-shared", "-Wl,-soname,libcuda.so"]).args(&objects).arg("-o").arg(&linked);
    assert!(command.status().expect("the linker starts").success(), "the stand-in does not link");
    // Another process may be building the same; either's result serves.
    fs::rename(&linked, &library).expect("the library can be moved");
    let _ = fs::remove_dir_all(&work);
    library
}

/// What the compiler is told.
fn options(sanitize: &str) -> Vec<String> {
    let mut options = vec!["-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"];
    // Contracted products would round differently on some processors. As nvcc has it, kernels read floats as words and back.
    options.extend(["-ffp-contract=off", "-fno-strict-aliasing", "-DRUSTAI_EMULATOR", "-I", "emu", "-I", "cuda"]);
    // Blocks run on several threads; a fiber stays on its block's, so what a thread has of its own is found at a fixed place.
    options.extend(["-pthread", "-ftls-model=initial-exec"]);
    let mut options: Vec<String> = options.into_iter().map(str::to_owned).collect();
    if sanitize.is_empty() {
        options.push("-O2".into());
    } else {
        // More takes twice as long to compile, and with the check that is left out GCC 12 then takes one row of weights for another
        // in gemv_f32, and reports nothing.
        options.extend([format!("-fsanitize={sanitize}"), "-fno-sanitize=object-size".into(), "-O1".into()]);
    }
    options
}
