//! `queue stat` and `queue top`: who uses a queue, and how much of it.

use super::submit;
use crate::{
    args::{QueueTool, QueueToolArgs, StatArgs, TopArgs},
    failure::Failure,
    interrupt::Guard,
    ui::{self, Printer, Table},
};
use rustai::queue::{Choice, ClientRow, Snapshot};
use serde::Serialize;
use std::{
    collections::HashMap,
    io::IsTerminal,
    time::{Duration, Instant},
};

/// Shows a queue.
pub fn run(args: &QueueToolArgs) -> Result<(), Failure> {
    let choice = submit::choice(&args.queue)?;
    match &args.what {
        QueueTool::Stat(stat) => tell(&choice, *stat),
        QueueTool::Top(top) => watch(&choice, *top),
    }
}

/// The clients of a queue. Asks as the user who may: the server's own over a socket, or root over the device.
fn look(choice: &Choice) -> Result<Snapshot, Failure> {
    match choice {
        Choice::Socket(path) => Snapshot::ask(path).map_err(|error| {
            Failure::new(format!("the server at {} does not tell: {error}", path.display()))
                .help("start `rustai serve --queue`, name its socket with --queue, and run as its user")
        }),
        Choice::Device(path) => {
            // Opening it tells whether there is a device, and what its server answers.
            let query = rustai::queue::Client::over(choice.open()?, Default::default())?.query()?;
            let mut snapshot = Snapshot::of_device(path)?;
            snapshot.attached = query.server != 0;
            (snapshot.epoch, snapshot.opcodes) = (query.epoch, query.opcodes);
            Ok(snapshot)
        }
    }
}

fn tell(choice: &Choice, args: StatArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Report {
        queue: String,
        #[serde(flatten)]
        snapshot: Snapshot,
    }
    let snapshot = look(choice)?;
    if args.json {
        return ui::json(&Report { queue: choice.to_string(), snapshot });
    }
    Printer::default().piece(&page(choice, &snapshot, None))
}

/// Names of opcodes, by their numbers.
const OPCODES: [&str; 10] =
    ["nop", "echo", "tokenize", "embed", "rerank", "logits", "generate", "matmul", "session_open", "session_close"];

/// What was seen before, and when.
type Before = (HashMap<(i32, u32, usize), u64>, Instant);

fn page(choice: &Choice, snapshot: &Snapshot, before: Option<&Before>) -> String {
    let answers: Vec<&str> =
        OPCODES.iter().enumerate().filter(|(n, _)| snapshot.opcodes >> n & 1 != 0).map(|(_, name)| *name).collect();
    let server = match snapshot.attached {
        true => format!("server {} (epoch {}) answers {}", snapshot.pid, snapshot.epoch, answers.join(", ")),
        false => "no server".to_owned(),
    };
    let sum = |of: fn(&ClientRow) -> u64| snapshot.clients.iter().map(of).sum::<u64>();
    let mut text = format!(
        "{choice}: {server}\n{}, {} jobs completed, {} in flight, {} registered, {} copied\n\n",
        ui::counted(snapshot.clients.len(), "client"),
        ui::count(sum(|row| row.completed)),
        sum(|row| row.admitted - row.completed.min(row.admitted)),
        ui::bytes(sum(|row| row.bytes)),
        ui::bytes(sum(|row| row.server_copied)),
    );
    let mut table = Table::new(&[
        "pid",
        ">uid",
        ">done",
        ">per second",
        ">failed",
        ">waiting",
        ">queued",
        ">running",
        ">buffers",
        ">bytes",
        ">refused",
    ]);
    for (index, row) in snapshot.clients.iter().enumerate() {
        let rate = before.map_or(String::new(), |(seen, at)| {
            let had = seen.get(&(row.pid, row.uid, index)).copied().unwrap_or(0);
            format!("{:.0}", row.completed.saturating_sub(had) as f64 / at.elapsed().as_secs_f64().max(1e-3))
        });
        table.row(vec![
            if row.pid == 0 { "server".to_owned() } else { row.pid.to_string() },
            row.uid.to_string(),
            row.completed.to_string(),
            rate,
            row.failed.to_string(),
            row.waiting.to_string(),
            row.queued.to_string(),
            row.running.to_string(),
            row.buffers.to_string(),
            ui::bytes(row.bytes),
            row.refused.to_string(),
        ]);
    }
    if !snapshot.clients.is_empty() {
        text += &table.text();
    }
    text
}

fn watch(choice: &Choice, args: TopArgs) -> Result<(), Failure> {
    let guard = Guard::new();
    let (mut printer, live) = (Printer::default(), std::io::stdout().is_terminal());
    let mut before: Option<Before> = None;
    let mut looks = 0;
    loop {
        let snapshot = look(choice)?;
        let page = page(choice, &snapshot, before.as_ref());
        // Home, the page with each line's rest cleared, then the rest of the screen.
        let shown = if live { format!("\x1b[H{}\x1b[J", page.replace('\n', "\x1b[K\n")) } else { page + "\n" };
        printer.piece(&shown)?;
        looks += 1;
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        let seen = snapshot.clients.iter().enumerate().map(|(i, row)| ((row.pid, row.uid, i), row.completed)).collect();
        before = Some((seen, Instant::now()));
        let until = Instant::now() + Duration::from_secs_f64(args.interval);
        while Instant::now() < until {
            if guard.raised() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20).min(until.saturating_duration_since(Instant::now())));
        }
    }
}
