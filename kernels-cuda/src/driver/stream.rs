//! Streams, events and recorded graphs.

use super::{Device, DeviceError, Span, check, error::check_raw};
use crate::kernels::Modules;
use cudarc::driver::{
    CudaEvent, CudaGraph, CudaStream, DriverError,
    sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode},
};
use rustai_kernels_cpu::External;
use std::{
    cell::{Cell, RefCell},
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

/// Work that runs in order on a device. Different streams may overlap.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    stream: Arc<CudaStream>,
    capturing: Cell<bool>,
    /// What the graph that is being captured points into.
    kept: RefCell<Kept>,
}

/// Memory and code that a graph needs.
#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    code: Vec<Arc<Modules>>,
}

/// While a stream is captured, nobody may wait for the whole device (CUDA C++ Programming Guide, "Prohibited and Unhandled
/// Operations"): captures write here, waits for devices read.
pub(super) static CAPTURES: RwLock<()> = RwLock::new(());

thread_local! {
    /// Whether the thread captures a stream, and so must not wait for those who do.
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
    /// What the thread does when its capture has ended.
    static DEFERRED: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Whether the calling thread captures a stream.
pub(super) fn thread_captures() -> bool {
    CAPTURING.get()
}

/// Does what frees memory or code, which waits for the device: now, or when the calling thread's capture has ended.
pub(crate) fn after_capture(work: impl FnOnce() + 'static) {
    if thread_captures() {
        DEFERRED.with_borrow_mut(|deferred| deferred.push(Box::new(work)));
    } else {
        work();
    }
}

/// A capture under way, which ends even if the work panics.
struct Capture<'a> {
    stream: &'a Stream,
    open: bool,
    alone: Option<RwLockWriteGuard<'static, ()>>,
}

impl Capture<'_> {
    /// Ends the capture and lets others wait for the device again, as the last user of some memory does when it goes.
    fn end(&mut self) -> (Result<Option<CudaGraph>, DriverError>, Kept) {
        self.open = false;
        let graph = self.stream.stream.end_capture(CUgraphInstantiate_flags(0));
        self.stream.capturing.set(false);
        let kept = self.stream.kept.take();
        self.release();
        (graph, kept)
    }

    /// Lets the thread and others wait for the device again, and does what had to wait for that.
    fn release(&mut self) {
        CAPTURING.set(false);
        self.alone = None;
        DEFERRED.take().into_iter().for_each(|work| work());
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.open {
            drop(self.end());
        }
        self.release();
    }
}

impl Stream {
    /// A new stream.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn new(device: &Device) -> Result<Self, DeviceError> {
        let stream = check("cuStreamCreate", device.context().new_stream())?;
        Ok(Self { device: device.clone(), stream, capturing: Cell::new(false), kept: RefCell::default() })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits for the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Driver`], also of work that was begun earlier.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        check("cuStreamSynchronize", self.stream.synchronize())
    }

    /// Copies the start of each span, after the stream's work, to memory that is not this program's alone, whole, and waits once
    /// for all of them.
    ///
    /// # Errors
    /// [`DeviceError::Invalid`] if a span has less, or a capture is under way, and nothing is copied; [`DeviceError::Driver`].
    pub fn download(&self, copies: &[(Span, &External)]) -> Result<(), DeviceError> {
        if self.capturing.get() {
            return Err(DeviceError::Invalid("the stream is being captured: nothing can be awaited".into()));
        }
        for (from, to) in copies {
            from.fits(to.len() * size_of::<f32>())?;
        }
        self.device.bind()?;
        let begun = copies.iter().filter(|(_, to)| !to.is_empty()).try_for_each(|(from, to)| {
            let bytes = to.len() * size_of::<f32>();
            // SAFETY: the memory is mapped and writable while `to` lives, and the span has the bytes; both are borrowed until
            // the copy is over.
            let copy = unsafe { sys::cuMemcpyDtoHAsync_v2(to.as_ptr().cast(), from.address(), bytes, self.raw()) };
            check_raw("cuMemcpyDtoHAsync", copy)
        });
        // Those that were begun must be over in any case.
        let ended = self.synchronize();
        begun.and(ended)
    }

    /// Records what `work` launches on this stream, and runs none of it. Memory that `work` drops is freed afterwards; it cannot
    /// wait for the device, as [`Span::upload`] and [`Span::download`] do.
    ///
    /// # Errors
    /// What `work` returns; [`DeviceError::Invalid`] if the calling thread captures a stream already; [`DeviceError::Driver`].
    /// The stream is usable afterwards in every case.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        if self.capturing.get() || thread_captures() {
            let what = if self.capturing.get() { "the stream" } else { "another stream of this thread" };
            return Err(DeviceError::Invalid(format!("{what} is being captured already; end that capture first")));
        }
        let alone = CAPTURES.write().unwrap_or_else(PoisonError::into_inner);
        CAPTURING.set(true);
        let mut capture = Capture { stream: self, open: false, alone: Some(alone) };
        let begun = check(
            "cuStreamBeginCapture",
            self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
        );
        begun?;
        capture.open = true;
        self.capturing.set(true);
        let done = work(self);
        let (graph, kept) = capture.end();
        // The first error is the cause: after it, ending the capture may fail too.
        done?;
        let graph = check("cuStreamEndCapture", graph)?
            .ok_or_else(|| DeviceError::Invalid("nothing was launched while the stream was captured".into()))?;
        Ok(Graph { graph, _kept: kept })
    }

    /// Whether what is launched now is recorded.
    pub fn is_captured(&self) -> bool {
        self.capturing.get()
    }

    /// Notes what a captured launch points into.
    pub(super) fn keep(&self, spans: &[&Span], code: Option<&Arc<Modules>>) {
        if self.capturing.get() {
            let mut kept = self.kept.borrow_mut();
            kept.spans.extend(spans.iter().map(|span| (*span).clone()));
            if let Some(code) = code.filter(|code| !kept.code.iter().any(|known| Arc::ptr_eq(known, code))) {
                kept.code.push(Arc::clone(code));
            }
        }
    }

    /// Marks the end of what the stream has been given so far.
    pub(super) fn record(&self, event: &CudaEvent) -> Result<(), DriverError> {
        event.record(&self.stream)
    }

    pub(super) fn raw(&self) -> CUstream {
        self.stream.cu_stream()
    }
}

/// Launches that were recorded and can be repeated with one call, on the stream that recorded them.
pub struct Graph {
    // Before what it uses.
    graph: CudaGraph,
    _kept: Kept,
}

// SAFETY: the driver may be given a graph from any thread, though not from two at a time: `Graph` is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Puts the recorded work behind the stream's work.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn launch(&self) -> Result<(), DeviceError> {
        check("cuGraphLaunch", self.graph.launch())
    }
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").finish_non_exhaustive()
    }
}

/// A moment in a stream's work, with the device's clock.
#[derive(Debug)]
pub struct Event(CudaEvent);

impl Event {
    /// Marks the end of what the stream has been given so far.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn record(stream: &Stream) -> Result<Self, DeviceError> {
        let event = stream.device.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let event = check("cuEventCreate", event)?;
        check("cuEventRecord", event.record(&stream.stream))?;
        Ok(Self(event))
    }

    /// Milliseconds from `earlier` to this event; waits until both have passed.
    ///
    /// # Errors
    /// [`DeviceError::Driver`].
    pub fn milliseconds_since(&self, earlier: &Self) -> Result<f32, DeviceError> {
        check("cuEventElapsedTime", earlier.0.elapsed_ms(&self.0))
    }
}
