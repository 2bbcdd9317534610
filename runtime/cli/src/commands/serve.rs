//! `serve`: loads a model once and answers other processes' jobs.

use super::{model, session};
use crate::{
    args::ServeArgs,
    compute,
    failure::Failure,
    interrupt,
    ui::{self, Printer, Progress},
};
use rustai::{
    Engine,
    queue::{
        Broker, BrokerOptions, Choice, DEVICE, ENGINE_DEVICE, EngineSide, Listener, ListenerOptions, Server,
        ServerOptions, default_socket, open_engine_device,
    },
};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Serves until Ctrl-C.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    // The queue is opened first: a wrong path is told before a model is loaded.
    let (side, listener, place) = open(args)?;
    let threads = compute::threads(args.compute.threads);
    let engine = if args.no_model { None } else { Some(engine(args, threads)?) };
    let guard = interrupt::Guard::new();
    let server = Server::start(side, engine.clone(), ServerOptions { threads, ..ServerOptions::default() })?;
    match engine.as_ref().map(|engine| engine.info()) {
        Some(info) => ui::note(format_args!("serving {} at {place}", info.name.as_deref().unwrap_or("a model"))),
        None => ui::note(format_args!("serving nop, echo and matmul at {place}")),
    }
    Printer::default().line(format_args!("ready {place}"))?;
    while !guard.raised() && server.is_attached() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let stat = server.stat();
    drop(listener);
    drop(server);
    let jobs = ui::counted(stat.jobs as usize, "job");
    ui::note(format_args!("{jobs} answered, {} of payload copied", ui::bytes(stat.copied)));
    if guard.raised() {
        Ok(())
    } else {
        Err(Failure::new("the queue gives no more work").help("see its log; start again"))
    }
}

type Opened = (Arc<dyn EngineSide>, Option<Listener>, String);

fn open(args: &ServeArgs) -> Result<Opened, Failure> {
    let choice = match args.queue.as_str() {
        "" => match open_engine_device(Path::new(ENGINE_DEVICE)) {
            Ok(side) => return Ok((side, None, format!("device:{DEVICE}"))),
            Err(_) => Choice::Socket(default_socket()),
        },
        text => Choice::parse(text).map_err(|_| {
            Failure::usage(format!("--queue {text:?} is no queue"))
                .help("give device, device:PATH, socket or socket:PATH")
        })?,
    };
    match choice {
        Choice::Device(path) => {
            let node = if path == Path::new(DEVICE) { PathBuf::from(ENGINE_DEVICE) } else { path.clone() };
            let side = open_engine_device(&node).map_err(|error| {
                Failure::from(error).help("load the module and run as a user that may open it, or give --queue socket")
            })?;
            Ok((side, None, format!("device:{}", path.display())))
        }
        Choice::Socket(path) => {
            let broker = Broker::new(BrokerOptions::default())?;
            let options = ListenerOptions { spin: Duration::from_micros(args.spin) };
            let (listener, place) = match Listener::inherited(&broker, options)? {
                Some(listener) => (listener, "the socket of the service manager".to_owned()),
                None => (Listener::bind(&broker, &path, options)?, format!("socket:{}", path.display())),
            };
            Ok((broker, Some(listener), place))
        }
    }
}

fn engine(args: &ServeArgs, threads: usize) -> Result<Engine, Failure> {
    let path = model::find(&args.model.model)?;
    let progress = Progress::bytes("loading");
    let engine = Engine::builder(&path)
        .threads(threads)
        .context(args.compute.ctx)
        .kv_type(args.compute.kv_type.into())
        .device(args.compute.device.device)
        .gpu_layers(args.compute.device.gpu_layers.0)
        .device_sampling(args.device_sampling)
        .max_sequences(args.sequences as usize)
        .on_progress(move |state| progress.set(state.done, Some(state.total)))
        .build();
    engine.map_err(session::explain)
}
