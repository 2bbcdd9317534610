//! Streams, events and recorded graphs.

use super::{Device, DeviceError, Span, check};
use cudarc::driver::{
    CudaEvent, CudaGraph, CudaStream, DriverError,
    sys::{CUevent_flags, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode},
};
use std::{
    cell::{Cell, RefCell},
    sync::Arc,
};

/// Work that runs in order on a device. Different streams may overlap.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    stream: Arc<CudaStream>,
    capturing: Cell<bool>,
    /// What the graph that is being captured points into.
    kept: RefCell<Vec<Span>>,
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

    /// Records what `work` launches on this stream, and runs none of it.
    ///
    /// # Errors
    /// What `work` returns; [`DeviceError::Invalid`] if a capture is under way; [`DeviceError::Driver`]. The stream is usable
    /// afterwards in every case.
    pub fn capture(&self, work: impl FnOnce(&Self) -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        if self.capturing.replace(true) {
            return Err(DeviceError::Invalid("the stream is being captured already".into()));
        }
        let begun = check(
            "cuStreamBeginCapture",
            self.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL),
        );
        if let Err(error) = begun {
            self.capturing.set(false);
            return Err(error);
        }
        let done = work(self);
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        self.capturing.set(false);
        let spans = self.kept.take();
        // The first error is the cause: after it, ending the capture may fail too.
        done?;
        let graph = check("cuStreamEndCapture", graph)?
            .ok_or_else(|| DeviceError::Invalid("nothing was launched while the stream was captured".into()))?;
        Ok(Graph { graph, _spans: spans })
    }

    /// Whether what is launched now is recorded.
    pub fn is_captured(&self) -> bool {
        self.capturing.get()
    }

    /// Notes spans that a captured launch points into.
    pub(super) fn keep(&self, spans: &[&Span]) {
        if self.capturing.get() {
            self.kept.borrow_mut().extend(spans.iter().map(|span| (*span).clone()));
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
    graph: CudaGraph,
    _spans: Vec<Span>,
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
