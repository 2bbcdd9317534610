//! The driver layer where things go wrong, and recorded graphs.

mod support;

use rustai_abi::{Batch, BatchSequence, DType};
use rustai_kernels_cpu::External;
use rustai_kernels_cuda::{
    Arena, Device, DeviceError, Event, Floats, Halves, Input, KernelSources, Kernels, Lockable, Packed, Projection,
    Quants, ReadbackBuffer, Span, Stream, UploadBuffer,
    driver::{IDLE_USES, MOST_LOCKED, OLDEST_DRIVER},
    ops::{BatchInputs, Operation, Targets, parameter_sizes},
    probe,
};
use std::ptr::NonNull;
use support::{open, standin};

#[test]
fn a_device_is_described() {
    let standin = standin();
    standin.set("devices", 2);
    standin.set("capability", 89);
    let devices = probe().unwrap();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[1].capability, (8, 9));
    assert_eq!((devices[1].ordinal, &devices[1].name[..]), (1, "emulated device"));
    assert!(matches!(Device::open(2), Err(DeviceError::UnknownDevice { ordinal: 2, count: 2 })));
}

#[test]
fn what_a_host_lacks_is_told_apart() {
    let standin = standin();
    standin.set("devices", 0);
    let error = probe().unwrap_err();
    assert!(matches!(&error, DeviceError::NoDevice(reason) if reason.contains("CUDA_ERROR_NO_DEVICE")), "{error}");
    standin.set("stub", 1);
    assert_eq!(probe().unwrap_err(), DeviceError::NoDriver);
    standin.reset();
    standin.set("driver", 11_040);
    let error = probe().unwrap_err();
    assert_eq!(error, DeviceError::DriverTooOld { found: 11_040, needed: OLDEST_DRIVER });
    let text = error.to_string();
    assert!(text.contains("supports CUDA 11.4, and 12.0 is needed") && text.contains("use the CPU"), "{text}");
    assert_eq!(Device::open(0).map(|_| ()).unwrap_err(), error);
}

#[test]
fn no_kernels_for_an_architecture_is_an_error_that_says_what_to_do() {
    let standin = standin();
    standin.set("capability", 30);
    let device = Device::open(0).unwrap();
    let error = Kernels::load(&device, &KernelSources::default()).map(|_| ()).unwrap_err();
    assert!(matches!(error, DeviceError::NoKernels { capability: (3, 0), .. }), "{error}");
    assert!(error.to_string().contains("use the CPU"), "{error}");
}

#[test]
fn pages_of_others_are_locked_and_released() {
    let standin = standin();
    let device = Device::open(0).unwrap();
    let stream = Stream::new(&device).unwrap();
    let rows = External::zeroed(4096);
    let start = NonNull::new(rows.as_ptr()).unwrap().cast::<u8>();
    // SAFETY: `rows` lives to the end of the test, and copies are awaited while the pages are held.
    let lockable = |bytes| unsafe { Lockable::new(start, bytes) };
    let values: Vec<f32> = (0..4096).map(|i| i as f32).collect();
    let floats = Floats::with(&device, 4096, &values).unwrap();
    let fetch = || {
        let before = ["fetched_locked", "waits"].map(|name| standin.get(name));
        let halves = [rows.part(0, 2048).unwrap(), rows.part(2048, 2048).unwrap()];
        let from = |half: usize| floats.span().part(half * 8192, 8192).unwrap();
        stream.download(&[(from(0), &halves[0]), (from(1), &halves[1])]).unwrap();
        assert_eq!(rows.to_vec(), values);
        assert_eq!(standin.get("waits") - before[1], 1);
        standin.get("fetched_locked") - before[0]
    };
    assert_eq!(fetch(), 0);
    let memory = lockable(16384);
    assert!(memory.keep().is_none());
    let held = memory.lock(&device).unwrap();
    assert_eq!((standin.get("registered"), fetch()), (1, 16384));
    // It stays for the next time, until the memory goes.
    drop(held);
    let registrations = standin.get("registrations");
    drop((memory.lock(&device).unwrap(), memory.keep().unwrap()));
    assert_eq!((standin.get("registered"), standin.get("registrations")), (1, registrations));
    // Other memory at the same address is nothing that was locked before. Twice is once too often, and what fails leaves nothing
    // behind.
    let other = lockable(8192);
    assert!(other.keep().is_none());
    let error = other.lock(&device).map(drop).unwrap_err().to_string();
    assert!(error.contains("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"), "{error}");
    drop(memory);
    assert_eq!((standin.get("registered"), fetch()), (0, 0));
    // What the driver refused once it is not asked again; the next memory it is.
    let asked = standin.get("registrations");
    assert!(matches!(other.lock(&device), Err(DeviceError::OutOfHostMemory { bytes: 8192, .. })));
    assert_eq!(standin.get("registrations"), asked);
    drop(other);
    standin.set("fail_register", 1);
    let memory = lockable(16384);
    for _ in 0..2 {
        let error = memory.lock(&device).map(drop).unwrap_err();
        assert_eq!(error, DeviceError::OutOfHostMemory { what: "a caller's buffer", bytes: 16384 });
    }
    standin.set("fail_register", 0);
    assert!(memory.lock(&device).is_err());
    let again = lockable(16384);
    drop(again.lock(&device).unwrap());
    assert_eq!(standin.get("registered"), 1);
    drop((memory, again));
    assert_eq!(standin.get("registered"), 0);

    let too_long = External::zeroed(4097);
    assert!(matches!(stream.download(&[(floats.span().clone(), &too_long)]), Err(DeviceError::Invalid(_))));
}

/// Memory of so many bytes that takes none until it is touched.
fn untouched(bytes: usize) -> Vec<u8> {
    vec![0; bytes]
}

/// Memory that may be locked.
fn lockable(memory: &mut [u8]) -> Lockable {
    // SAFETY: callers keep the memory, and await copies while its pages are held.
    unsafe { Lockable::new(NonNull::new(memory.as_mut_ptr()).unwrap(), memory.len()) }
}

#[test]
fn locked_pages_that_nobody_uses_give_way_to_others() {
    let standin = standin();
    let device = Device::open(0).unwrap();
    const PART: usize = MOST_LOCKED / 4;
    let mut memories: Vec<_> = [PART; 4].into_iter().chain([PART, 2 * PART, MOST_LOCKED + 1]).map(untouched).collect();
    let mut memories: Vec<_> = memories.iter_mut().map(|memory| lockable(memory)).collect();
    let counts = || ["registered", "registrations"].map(|name| standin.get(name));
    let locked = |memory: &Lockable| memory.keep().is_some();
    let use_often = |memory: &Lockable, times: u64| (0..times).for_each(|_| drop(memory.lock(&device).unwrap()));
    let before = counts();
    let since = || [0, 1].map(|i| counts()[i] - before[i]);
    // Four fill it; a fifth is refused before the driver hears of it, until the first was idle for long enough.
    memories[..4].iter().for_each(|memory| drop(memory.lock(&device).unwrap()));
    assert_eq!(since(), [4, 4]);
    use_often(&memories[1], 2);
    let mut tries = 0;
    while memories[4].lock(&device).is_err() {
        tries += 1;
        assert!(tries < 2 * IDLE_USES, "nothing gives way");
    }
    // The first was followed by five uses of others.
    assert_eq!((since(), tries), ([4, 5], IDLE_USES - 6));
    assert_eq!([0, 1, 2, 3, 4].map(|i| locked(&memories[i])), [false, true, true, true, true]);

    // Of three that are idle, the one that was not used for longest goes, which is not the one that was locked first.
    use_often(&memories[4], IDLE_USES);
    drop(memories[0].lock(&device).unwrap());
    assert_eq!([0, 1, 2, 3, 4].map(|i| locked(&memories[i])), [true, false, true, true, true]);

    // What is held stays, however long; for the room of two, two go.
    let held = memories[2].keep().unwrap();
    use_often(&memories[3], IDLE_USES);
    use_often(&memories[0], 1);
    assert!(matches!(memories[5].lock(&device), Err(DeviceError::OutOfHostMemory { .. })), "one alone is idle");
    assert_eq!(since(), [4, 6], "one that is not enough stays");
    use_often(&memories[3], IDLE_USES);
    drop(memories[5].lock(&device).unwrap());
    assert_eq!([0, 1, 2, 3, 4, 5].map(|i| locked(&memories[i])), [false, false, true, true, false, true]);
    drop(held);
    // More than may be locked at all moves nobody.
    assert!(memories[6].lock(&device).is_err());
    assert_eq!(since(), [3, 7]);

    // A lock that cannot be undone, or a device that is lost, is no reason to lose count.
    use_often(&memories[3], IDLE_USES);
    standin.fault("cuMemHostRegister", 1, 2);
    assert!(memories[4].lock(&device).is_err());
    assert_eq!(since(), [2, 7], "room was made, and the driver refused");
    memories.truncate(3);
    memories.iter().for_each(|memory| drop(memory.lock(&device).unwrap()));
    drop(memories);
    assert_eq!(since()[0], 0);
}

/// Two threads, of whose memories only one can be locked: a lock that goes while a copy runs is an error of the stand-in's.
#[test]
fn locks_are_not_given_up_while_others_copy() {
    let standin = standin();
    let device = Device::open(0).unwrap();
    let values = Floats::with(&device, 64, &[1.0; 64]).unwrap();
    let registrations = standin.get("registrations");
    let turn = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (device, values, turn) = (&device, &values, &turn);
            scope.spawn(move || {
                let stream = Stream::new(device).unwrap();
                let mut memory = untouched(MOST_LOCKED / 4 * 3);
                let start = NonNull::new(memory.as_mut_ptr().cast::<f32>()).unwrap();
                let lockable = lockable(&mut memory);
                // SAFETY: the memory lives as long as the thread, and nobody looks at it.
                let row = unsafe { External::new(start, 1, std::sync::Arc::new(())) };
                let rows: Vec<_> = (0..64).map(|i| (values.span().part(4 * i, 4).unwrap(), &row)).collect();
                let copy = |times: u64| {
                    for _ in 0..times {
                        let _held = lockable.lock(device).ok();
                        stream.download(&rows).unwrap();
                    }
                };
                // Both, and then one, until the other's lock is idle.
                for goes_on in [0, 1, 0, 1] {
                    turn.wait();
                    copy(2 * IDLE_USES);
                    turn.wait();
                    copy(if goes_on == thread { 2 * IDLE_USES } else { 0 });
                }
            });
        }
    });
    assert!(standin.get("registrations") - registrations >= 4);
    assert_eq!(standin.get("registered"), 0);
}

#[test]
fn memory_that_is_not_there_is_named_and_what_is_dropped_comes_back() {
    let standin = standin();
    let before = standin.get("allocated");
    standin.set("memory", before + (8 << 20));
    let device = Device::open(0).unwrap();
    let held = Arena::new(&device, "the first half", 4 << 20).unwrap();
    let error = Arena::new(&device, "the model", 6 << 20).map(|_| ()).unwrap_err();
    assert_eq!(error, DeviceError::OutOfMemory { what: "the model", bytes: 6 << 20, free: 4 << 20 });
    assert!(error.to_string().contains("the model needs 6 MiB of device memory, and 4 MiB are free"), "{error}");
    drop(held);
    let mut arena = Arena::new(&device, "the model", 6 << 20).unwrap();
    let error = Arena::new(&device, "everything", usize::MAX).map(|_| ()).unwrap_err();
    assert!(matches!(error, DeviceError::OutOfMemory { .. }), "{error}");
    // A span keeps its arena.
    let span = arena.take(5).unwrap();
    assert!(arena.take(6 << 20).is_err());
    assert_eq!(arena.take(5).unwrap().address() - span.address(), 256);
    drop(arena);
    span.upload(&[1u8, 2, 3, 4, 5]).unwrap();
    let mut back = [0u8; 2];
    span.part(3, 2).unwrap().download(&mut back).unwrap();
    assert_eq!(back, [4, 5]);
    assert!(span.part(4, 2).is_err() && span.part(usize::MAX, 2).is_err());
    assert!(span.upload(&[0u8; 6]).is_err() && span.download(&mut [0u8; 6]).is_err());
    drop(span);
    assert_eq!(standin.get("allocated"), before);
}

/// `x = x + x` on this many values.
fn doubling(kernels: &Kernels, stream: &Stream, x: &Floats) -> Result<(), DeviceError> {
    kernels.elements(stream, Operation::Add, x, Some(x), x, x.rows())
}

#[test]
fn a_failed_launch_is_reported_and_so_is_everything_after_it() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    standin.set("fail_launch", 2);
    doubling(&kernels, &stream, &x).unwrap();
    doubling(&kernels, &stream, &x).unwrap();
    let error = stream.synchronize().unwrap_err();
    assert!(
        matches!(&error, DeviceError::Driver { code: 719, name, .. } if name == "CUDA_ERROR_LAUNCH_FAILED"),
        "{error}"
    );
    assert!(x.read(1).is_err());
    assert!(doubling(&kernels, &stream, &x).is_err());
    assert!(Event::record(&stream).is_err());
    // Dropping what is left must not panic, and the host goes on.
    drop((x, kernels, stream, device));
    standin.reset();
    let (device, kernels, stream) = open(&standin);
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    doubling(&kernels, &stream, &x).unwrap();
    assert_eq!(x.read(1).unwrap(), [2.0; 4]);
}

#[test]
fn a_kernel_that_is_missing_is_named() {
    let standin = standin();
    let (device, ..) = open(&standin);
    assert!(Kernels::from_images(&device, 90, &[b""]).is_err());
    assert!(Kernels::from_images(&device, 90, &[b"// PTX without an end"]).is_err());
    let none = Kernels::from_images::<&[u8]>(&device, 90, &[]).unwrap();
    let stream = Stream::new(&device).unwrap();
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let error = doubling(&none, &stream, &x).unwrap_err();
    assert_eq!(error, DeviceError::MissingKernel("elements".into()));
}

#[test]
fn a_graph_repeats_its_launches_and_keeps_what_they_use() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let x = Floats::with(&device, 4, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    let graph = stream
        .capture(|stream| {
            doubling(&kernels, stream, &x)?;
            doubling(&kernels, stream, &x)
        })
        .unwrap();
    stream.synchronize().unwrap();
    assert_eq!(x.read(1).unwrap(), [1.0, 2.0, 3.0, 4.0], "recording runs nothing");
    let launches = standin.get("launches");
    let start = Event::record(&stream).unwrap();
    for _ in 0..3 {
        graph.launch().unwrap();
    }
    let end = Event::record(&stream).unwrap();
    assert!(end.milliseconds_since(&start).unwrap() >= 0.0);
    assert_eq!(x.read(1).unwrap(), [64.0, 128.0, 192.0, 256.0]);
    assert_eq!((standin.get("launches") - launches, standin.get("graph_launches")), (6, 3));
    let allocated = standin.get("allocated");
    drop(x);
    assert_eq!(standin.get("allocated"), allocated, "the graph still needs the memory");
    graph.launch().unwrap();
    stream.synchronize().unwrap();
    drop(graph);
    assert!(standin.get("allocated") < allocated);
}

/// Code for capabilities before 9.0 does not wait for the kernel before it, so it must not begin earlier, on newer devices either.
#[test]
fn launches_overlap_only_where_the_loaded_code_waits() {
    let standin = standin();
    let folder = tempfile::tempdir().unwrap();
    let sources = KernelSources { folder: Some(folder.path().to_owned()), cache: None };
    let counts = || ["overlapping", "overlapping_captured"].map(|name| standin.get(name));
    let run = |capability, driver| {
        standin.reset();
        standin.set("capability", capability);
        standin.set("driver", driver);
        let device = Device::open(0).unwrap();
        let kernels = Kernels::load(&device, &sources).unwrap();
        let stream = Stream::new(&device).unwrap();
        let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
        doubling(&kernels, &stream, &x).unwrap();
        let graph = stream.capture(|stream| doubling(&kernels, stream, &x)).unwrap();
        graph.launch().unwrap();
        assert_eq!(x.read(1).unwrap(), [4.0; 4]);
        counts()
    };
    std::fs::write(folder.path().join("rows.compute_80.ptx"), b"// text").unwrap();
    assert_eq!(run(110, 13_000), [0, 0], "text for 8.0 on a device of 11.0");
    assert_eq!(run(90, 13_000), [0, 0], "text for 8.0 on a device of 9.0");
    std::fs::write(folder.path().join("rows.sm_90a.cubin"), b"// code\0").unwrap();
    assert_eq!(run(110, 13_000), [0, 0], "code for 9.0 does not run on a device of 11.0");
    assert_eq!(run(90, 13_000), [1, 1]);
    // Edges of graphs have data since CUDA 12.3.
    assert_eq!(run(90, 12_020), [1, 0]);
    assert_eq!(run(90, 12_030), [1, 1]);
}

#[test]
fn a_capture_that_fails_leaves_the_stream_usable() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let error = stream.capture(|_| Err(DeviceError::Invalid("stop".into()))).map(|_| ()).unwrap_err();
    assert_eq!(error, DeviceError::Invalid("stop".into()));
    let nested = stream.capture(|stream| stream.capture(|_| Ok(())).map(|_| ())).map(|_| ()).unwrap_err();
    assert!(nested.to_string().contains("captured already"), "{nested}");
    doubling(&kernels, &stream, &x).unwrap();
    assert_eq!(x.read(1).unwrap(), [2.0; 4]);
}

#[test]
fn work_waits_until_somebody_asks() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let launches = standin.get("launches");
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    doubling(&kernels, &stream, &x).unwrap();
    assert_eq!(standin.get("launches"), launches);
    stream.synchronize().unwrap();
    assert_eq!(standin.get("launches"), launches + 1);
    let span = Span::new(&device, "test", 16).unwrap();
    assert!(!span.is_empty() && span.bytes() == 16);
}

#[test]
fn host_memory_is_given_out_only_after_the_copy() {
    let standin = standin();
    let held = standin.get("host_allocations");
    let (device, _kernels, stream) = open(&standin);
    let span = Span::new(&device, "test", 16).unwrap();
    let mut up = UploadBuffer::<u32>::new(&device, "test", 4).unwrap();
    let mut down = ReadbackBuffer::<u32>::new(&device, "test", 4).unwrap();
    assert_eq!(up.values().unwrap(), [0; 4]);
    up.values().unwrap().copy_from_slice(&[1, 2, 3, 4]);
    up.send(&stream, &span, 3).unwrap();
    // The copy has not run; asking for the values waits for it, so they cannot be changed under it.
    up.values().unwrap().fill(9);
    down.fetch(&stream, &span, 3).unwrap();
    assert_eq!(down.values().unwrap()[..3], [1, 2, 3]);
    let error = up.send(&stream, &span, 5).unwrap_err();
    assert!(error.to_string().contains("values 0..5"), "{error}");
    assert!(down.fetch(&stream, &span.part(0, 8).unwrap(), 3).is_err());
    drop((up, down));
    assert_eq!(standin.get("host_allocations"), held);

    standin.set("fail_host_memory", 1);
    let error = UploadBuffer::<f32>::new(&device, "the staging of weights", 1 << 20).map(|_| ()).unwrap_err();
    assert_eq!(error, DeviceError::OutOfHostMemory { what: "the staging of weights", bytes: 4 << 20 });
}

#[test]
fn a_batch_goes_over_in_one_copy_and_is_checked_first() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let mut inputs = BatchInputs::new(&device, 4, 2, 3, 8).unwrap();
    let sequences =
        [BatchSequence { len: 1, start: 40, pages: &[5, 7, 1] }, BatchSequence { len: 2, start: 0, pages: &[3] }];
    let batch = Batch { tokens: &[11, 12, 13], sequences: &sequences, outputs: &[0, 2] };
    inputs.send(&stream, &batch).unwrap();
    let mut tokens = [0u32; 3];
    inputs.tokens().download(&mut tokens).unwrap();
    assert_eq!(tokens, [11, 12, 13]);
    let mut outputs = [0u32; 2];
    inputs.outputs().download(&mut outputs).unwrap();
    assert_eq!(outputs, [0, 2]);
    drop(kernels);

    let one = |len, start, pages| [BatchSequence { len, start, pages }];
    for (tokens, sequences, outputs, part) in [
        (&[1, 2, 3, 4, 5][..], one(5, 0, &[0]), &[][..], "5 tokens and 0 outputs"),
        (&[1], one(1, 0, &[0]), &[0, 0, 0], "1 tokens and 3 outputs"),
        (&[1, 2], one(1, 0, &[0]), &[], "a batch of 2 tokens (1 in sequences)"),
        (&[1], one(1, 31, &[8]), &[], "page 8 of a cache of 8"),
        (&[1], one(1, 32, &[0]), &[], "1 pages do not hold 33 positions"),
        (&[1], one(1, 96, &[0, 1, 2, 3]), &[], "3 have room"),
        (&[1], one(2, u32::MAX, &[0]), &[], "do not hold"),
    ] {
        let error = inputs.send(&stream, &Batch { tokens, sequences: &sequences, outputs }).unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_folder_of_images_goes_before_the_program_and_must_have_the_architecture() {
    let _standin = standin();
    let device = Device::open(0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let sources = KernelSources { folder: Some(folder.path().to_owned()), cache: None };
    let error = Kernels::load(&device, &sources).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("holds none") && error.contains("use the CPU"), "{error}");
    std::fs::write(folder.path().join("rows.sm_80.cubin"), b"// code\0").unwrap();
    let error = Kernels::load(&device, &sources).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("for sm_80 only"), "{error}");
    std::fs::write(folder.path().join("rows.sm_90a.cubin"), b"// code\0").unwrap();
    Kernels::load(&device, &sources).unwrap();
    let gone = KernelSources { folder: Some(folder.path().join("gone")), cache: None };
    let error = Kernels::load(&device, &gone).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn parameters_are_as_large_as_the_kernels_take_them() {
    let standin = standin();
    for (kernel, bytes) in parameter_sizes() {
        assert_eq!(standin.parameter_bytes(kernel), Some(bytes), "{kernel}");
    }
}

#[test]
fn memory_that_only_a_failed_capture_uses_goes_without_a_deadlock() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let held = standin.get("allocations");
    let failed = stream.capture(|stream| {
        let x = Span::new(&device, "test", 4 * 32)?;
        let x = Floats::at(&x, 1, 32)?;
        kernels.softmax(stream, &x, &x, 1)?;
        Err(DeviceError::Invalid("no more".into()))
    });
    assert!(failed.is_err());
    assert_eq!(standin.get("allocations"), held);
    device.synchronize().unwrap();
}

/// What waits for the device would wait for the capture, which is this thread's own.
#[test]
fn in_a_capture_nothing_waits_for_the_device_and_memory_goes_afterwards() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let other = Stream::new(&device).unwrap();
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let gone = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let images = Kernels::from_images(&device, 90, &[b"// more\0"]).unwrap();
    let held = standin.get("allocations");
    let graph = stream
        .capture(|stream| {
            for error in
                [x.span().upload(&[2.0f32; 4]).unwrap_err(), x.read(1).unwrap_err(), device.synchronize().unwrap_err()]
            {
                assert!(matches!(error, DeviceError::Invalid(_)), "{error}");
                assert!(error.to_string().contains("CUDA device 0 cannot be awaited"), "{error}");
            }
            let nested = other.capture(|_| Ok(())).map(drop).unwrap_err().to_string();
            assert!(nested.contains("another stream of this thread is being captured already"), "{nested}");
            drop((gone, images));
            assert_eq!(standin.get("allocations"), held, "freed while the stream was captured");
            doubling(&kernels, stream, &x)
        })
        .unwrap();
    assert_eq!(standin.get("allocations"), held - 1);
    graph.launch().unwrap();
    assert_eq!(x.read(1).unwrap(), [2.0; 4]);
    // The end of a capture that fails, or panics, or does not begin, is one, too.
    let y = || Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let held = standin.get("allocations");
    let mut drops = Some(y());
    let failed = stream.capture(|_| {
        drops = None;
        Err(DeviceError::Invalid("stop".into()))
    });
    assert!(failed.is_err() && standin.get("allocations") == held);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let y = y();
        stream.capture(|_| {
            drop(y);
            panic!("stop")
        })
    }));
    assert!(unwound.is_err() && standin.get("allocations") == held);
    standin.fault("cuStreamBeginCapture", 1, 900);
    assert!(stream.capture(|_| Ok(())).is_err());
    x.span().upload(&[1.0f32; 4]).unwrap();
    device.synchronize().unwrap();
}

#[test]
fn a_kernel_is_looked_up_once() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let weights: Vec<u8> = (0..32 * 8).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let packed = Packed::new(DType::F32, 8, 32, &weights).unwrap();
    let weights = packed.upload(&device).unwrap();
    let x = Floats::with(&device, 32, &vec![1.0; 20 * 32]).unwrap();
    let out = Floats::with(&device, 8, &vec![0.0; 20 * 8]).unwrap();
    let product = |tokens| {
        let projection = Projection { weights: &weights, bias: None, out: &out, accumulate: false };
        kernels.matmul(&stream, Input::Floats(&x), &[projection], None, tokens).unwrap();
    };
    let counts = || ["lookups", "attributes"].map(|name| standin.get(name));
    let before = counts();
    product(20);
    assert_eq!(counts(), [before[0] + 1, before[1] + 1], "a kernel with more shared memory than it has unasked");
    (0..3).for_each(|_| product(20));
    assert_eq!(counts(), [before[0] + 1, before[1] + 1]);
    kernels.ready_matmul(&[DType::F32]).unwrap();
    let ready = counts();
    assert_eq!(ready, [before[0] + 5, before[1] + 1], "four kernels for few tokens");
    [1, 2, 3, 8, 16, 20].into_iter().for_each(product);
    stream.synchronize().unwrap();
    assert_eq!(counts(), ready);
}

#[test]
fn an_image_that_the_driver_refuses_is_told_from_a_driver_that_fails() {
    let standin = standin();
    let (device, ..) = open(&standin);
    let load = || Kernels::from_images(&device, 80, &[b"// text\0"]).map(drop);
    for (result, name) in [
        (209, "CUDA_ERROR_NO_BINARY_FOR_GPU"),
        (218, "CUDA_ERROR_INVALID_PTX"),
        (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"),
    ] {
        standin.fault("cuModuleLoadData", 1, result);
        let error = load().unwrap_err();
        let DeviceError::NoKernels { capability: (9, 0), reason, .. } = &error else { panic!("{error}") };
        assert!(reason.contains(name) && reason.contains("use the CPU"), "{error}");
    }
    standin.fault("cuModuleLoadData", 1, 2);
    let error = load().unwrap_err();
    assert!(matches!(error, DeviceError::Driver { call: "cuModuleLoadData", code: 2, .. }), "{error}");
    // Of several images, those that were loaded go again.
    standin.fault("cuModuleLoadData", 2, 209);
    assert!(Kernels::from_images(&device, 80, &[b"// a\0", b"// b\0"]).is_err());
    load().unwrap();
    standin.fault("cuModuleGetFunction", 1, 1);
    let (.., kernels, stream) = open(&standin);
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let error = doubling(&kernels, &stream, &x).unwrap_err();
    assert!(matches!(error, DeviceError::Driver { call: "cuModuleGetFunction", code: 1, .. }), "{error}");
    // What is not known of a kernel is not kept.
    doubling(&kernels, &stream, &x).unwrap();
    assert_eq!(x.read(1).unwrap(), [2.0; 4]);
}

/// Whatever call fails is named, does not go unnoticed, and does no harm to the next one.
#[test]
fn every_call_that_fails_is_named() {
    let standin = standin();
    let (device, kernels, stream) = open(&standin);
    let span = Span::new(&device, "test", 64).unwrap();
    let mut buffers = [(); 3].map(|()| UploadBuffer::<f32>::new(&device, "test", 16).unwrap());
    let [up, marked, awaited] = &mut buffers;
    let mut back = ReadbackBuffer::<f32>::new(&device, "test", 16).unwrap();
    let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
    let rows = External::zeroed(4);
    let mut values = [0.0f32; 4];
    type Work<'a> = Box<dyn FnMut() -> Result<(), DeviceError> + 'a>;
    let calls: Vec<(&str, &str, Work<'_>)> = vec![
        ("cuDevicePrimaryCtxRetain", "", Box::new(|| Device::open(0).map(drop))),
        ("cuCtxSynchronize", "", Box::new(|| device.synchronize())),
        ("cuMemAlloc", "", Box::new(|| Span::new(&device, "test", 4).map(drop))),
        ("cuMemHostAlloc", "", Box::new(|| UploadBuffer::<u8>::new(&device, "test", 4).map(drop))),
        ("cuMemcpyHtoD", "", Box::new(|| span.upload(&[1.0f32; 4]))),
        ("cuStreamSynchronize", "upload", Box::new(|| span.upload(&[1.0f32; 4]))),
        ("cuMemcpyDtoH", "", Box::new(|| span.download(&mut values))),
        ("cuMemcpyHtoDAsync", "", Box::new(|| up.send(&stream, &span, 4))),
        ("cuEventRecord", "send", Box::new(|| marked.send(&stream, &span, 4))),
        ("cuEventSynchronize", "", {
            awaited.send(&stream, &span, 4).unwrap();
            Box::new(|| awaited.values().map(drop))
        }),
        ("cuMemcpyDtoHAsync", "fetch", Box::new(|| back.fetch(&stream, &span, 4))),
        ("cuMemcpyDtoHAsync", "download", Box::new(|| stream.download(&[(x.span().clone(), &rows)]))),
        ("cuStreamSynchronize", "download", Box::new(|| stream.download(&[(x.span().clone(), &rows)]))),
        ("cuStreamSynchronize", "", Box::new(|| stream.synchronize())),
        ("cuStreamCreate", "", Box::new(|| Stream::new(&device).map(drop))),
        ("cuEventCreate", "", Box::new(|| Event::record(&stream).map(drop))),
        ("cuEventRecord", "", Box::new(|| Event::record(&stream).map(drop))),
        ("cuLaunchKernelEx", "", Box::new(|| doubling(&kernels, &stream, &x))),
        ("cuStreamBeginCapture", "", Box::new(|| stream.capture(|s| doubling(&kernels, s, &x)).map(drop))),
        ("cuStreamEndCapture", "", Box::new(|| stream.capture(|s| doubling(&kernels, s, &x)).map(drop))),
        ("cuGraphLaunch", "", Box::new(|| stream.capture(|s| doubling(&kernels, s, &x))?.launch())),
    ];
    for (call, what, mut work) in calls {
        // Not one of those that leave the context unusable.
        standin.fault(call, 1, 1);
        let error = work().expect_err(call);
        assert_eq!(standin.get("faults"), 0, "{call} was not called");
        let name = "CUDA_ERROR_INVALID_VALUE".into();
        assert_eq!(error, DeviceError::Driver { call, code: 1, name }, "{call} {what}");
        work().unwrap_or_else(|error| panic!("after {call} {what}: {error}"));
    }
    stream.synchronize().unwrap();
}

#[test]
fn a_lost_device_fails_every_call_until_nobody_uses_it() {
    let standin = standin();
    // An error of the memory, an address that is not there, a kernel that failed, and a device that fell off the bus.
    for (result, name) in [
        (214, "CUDA_ERROR_ECC_UNCORRECTABLE"),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (719, "CUDA_ERROR_LAUNCH_FAILED"),
        (999, "CUDA_ERROR_UNKNOWN"),
    ] {
        let held = ["allocations", "host_allocations"].map(|name| standin.get(name));
        let (device, kernels, stream) = open(&standin);
        let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
        let mut up = UploadBuffer::<f32>::new(&device, "test", 4).unwrap();
        let graph = stream.capture(|stream| doubling(&kernels, stream, &x)).unwrap();
        up.send(&stream, x.span(), 4).unwrap();
        standin.fault("cuStreamSynchronize", 1, result);
        assert!(stream.synchronize().is_err());
        for error in [
            stream.synchronize(),
            device.synchronize(),
            x.span().upload(&[1.0f32; 4]),
            x.read(1).map(drop),
            up.values().map(drop),
            doubling(&kernels, &stream, &x),
            graph.launch(),
            stream.capture(|stream| doubling(&kernels, stream, &x)).map(drop),
            Event::record(&stream).map(drop),
            Stream::new(&device).map(drop),
            Span::new(&device, "test", 4).map(drop),
            UploadBuffer::<u8>::new(&device, "test", 4).map(drop),
            Kernels::from_images(&device, 90, &[b"// code\0"]).map(drop),
            Device::open(0).map(drop),
        ] {
            let error = error.unwrap_err();
            assert!(matches!(&error, DeviceError::Driver { name: found, .. } if found == name), "{error}");
        }
        // With the last that used it, the context goes, and what the driver did not free before.
        drop((graph, up, x, kernels, stream, device));
        assert_eq!(["allocations", "host_allocations"].map(|name| standin.get(name)), held);
        let (device, kernels, stream) = open(&standin);
        let x = Floats::with(&device, 4, &[1.0; 4]).unwrap();
        doubling(&kernels, &stream, &x).unwrap();
        assert_eq!(x.read(1).unwrap(), [2.0; 4]);
    }
}

/// Devices differ in the shared memory that they give a block (CUDA C++ Programming Guide, "Technical Specifications per Compute
/// Capability"); the largest tile fits all of them.
#[test]
fn products_of_many_tokens_fit_the_shared_memory_of_every_device() {
    let standin = standin();
    for capability in [80, 86, 89, 90, 100, 120] {
        standin.set("capability", capability);
        let (device, kernels, stream) = open(&standin);
        for dtype in [DType::F32, DType::Q2_K, DType::Q4_K, DType::Q6_K] {
            let bytes = vec![0; dtype.bytes_for(256).unwrap()];
            let weights = Packed::new(dtype, 1, 256, &bytes).unwrap().upload(&device).unwrap();
            let x = Floats::with(&device, 256, &vec![1.0; 70 * 256]).unwrap();
            let out = Floats::with(&device, 1, &[1.0; 70]).unwrap();
            let room = Quants::room(70, 256) + Halves::room(70, 256);
            let mut arena = Arena::new(&device, "test", room).unwrap();
            let quants = Quants::take(&mut arena, 70, 256).unwrap();
            let has_halves = dtype != DType::F32 && kernels.halves_from().unwrap().is_some();
            let halves = has_halves.then(|| Halves::take(&mut arena, 70, 256).unwrap());
            let targets = Targets { floats: None, quants: Some(&quants), halves: halves.as_ref() };
            kernels.convert(&stream, &x, targets, 70).unwrap();
            let input = if dtype == DType::F32 { Input::Floats(&x) } else { Input::Quantized(&quants) };
            let projection = Projection { weights: &weights, bias: None, out: &out, accumulate: false };
            let inputs = [12, 20, 40, 70].map(|tokens| (tokens, input));
            for (tokens, input) in inputs.into_iter().chain(halves.as_ref().map(|halves| (70, Input::Halves(halves)))) {
                kernels.matmul(&stream, input, &[projection], None, tokens).unwrap();
                let got = out
                    .read(tokens)
                    .unwrap_or_else(|error| panic!("{dtype}, {capability}, {tokens}: {error}: {}", standin.failure()));
                assert!(got.iter().all(|value| *value == 0.0));
            }
        }
    }
}
