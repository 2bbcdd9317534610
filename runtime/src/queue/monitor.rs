//! What those who watch a queue see: the counters of all clients.

use super::broker::{Broker, ClientStat};
use rustai_abi::queue::{Query, server_state};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// The state of a queue at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Snapshot {
    /// Process of the server.
    pub pid: u32,
    /// Whether a server is attached.
    pub attached: bool,
    /// Attachments of servers so far.
    pub epoch: u32,
    /// Bit n: the server answers opcode n.
    pub opcodes: u64,
    /// Open clients.
    pub clients: Vec<ClientRow>,
}

/// One client of a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of `Stat`, which documents them")]
#[non_exhaustive]
pub struct ClientRow {
    /// Process; 0 if it is the server's own.
    pub pid: i32,
    /// User.
    pub uid: u32,
    pub admitted: u64,
    pub completed: u64,
    pub failed: u64,
    pub canceled: u64,
    pub timed_out: u64,
    pub progress: u64,
    pub refused: u64,
    pub waiting: u32,
    pub queued: u32,
    pub running: u32,
    pub buffers: u32,
    pub bytes: u64,
    pub server_copied: u64,
}

impl From<ClientStat> for ClientRow {
    fn from(ClientStat { uid, pid, stat }: ClientStat) -> Self {
        Self {
            pid,
            uid,
            admitted: stat.admitted,
            completed: stat.completed,
            failed: stat.failed,
            canceled: stat.canceled,
            timed_out: stat.timed_out,
            progress: stat.progress,
            refused: stat.refused,
            waiting: stat.waiting,
            queued: stat.queued,
            running: stat.running,
            buffers: stat.buffers,
            bytes: stat.bytes,
            server_copied: stat.server_copied,
        }
    }
}

impl Snapshot {
    /// The state of a broker.
    pub fn of(broker: &Broker) -> Self {
        let Query { server, epoch, opcodes, .. } = broker.query();
        Self {
            pid: std::process::id(),
            attached: server == server_state::ATTACHED,
            epoch,
            opcodes,
            clients: broker.clients().into_iter().map(ClientRow::from).collect(),
        }
    }

    /// Asks the server whose clients connect to `socket`.
    ///
    /// # Errors
    /// If nobody answers, or this user may not ask.
    pub fn ask(socket: &Path) -> io::Result<Self> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".stat");
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }

    /// Asks the kernel, of the clients of the device: those of this user, or all for root. What the device's `fdinfo` does
    /// not tell is zero.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_device(device: &Path) -> io::Result<Self> {
        let mut snapshot = Self::default();
        for process in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
            for fd in fds.flatten() {
                if std::fs::read_link(fd.path()).is_ok_and(|target| target == device)
                    && let Ok(info) = std::fs::read_to_string(process.path().join("fdinfo").join(fd.file_name()))
                {
                    let uid = std::fs::metadata(process.path()).map_or(0, |data| {
                        use std::os::unix::fs::MetadataExt;
                        data.uid()
                    });
                    snapshot.clients.push(ClientRow { pid, uid, ..ClientRow::of_fdinfo(&info) });
                }
            }
        }
        Ok(snapshot)
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl ClientRow {
    fn of_fdinfo(text: &str) -> Self {
        let mut row = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let Ok(value) = value.trim().parse::<u64>() else { continue };
            match key {
                "rustai-admitted" => row.admitted = value,
                "rustai-completed" => row.completed = value,
                "rustai-failed" => row.failed = value,
                "rustai-buffers" => row.buffers = value as u32,
                "rustai-bytes" => row.bytes = value,
                _ => {}
            }
        }
        // Which of the states they are in the device does not tell.
        row.running = u32::try_from(row.admitted.saturating_sub(row.completed)).unwrap_or(u32::MAX);
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_read() {
        let text = "pos:\t0\nflags:\t02\nrustai-admitted:\t12\nrustai-completed:\t10\nrustai-failed:\t1\nrustai-buffers:\t2\nrustai-bytes:\t8192\n";
        let row = ClientRow::of_fdinfo(text);
        assert_eq!((row.admitted, row.completed, row.failed, row.running), (12, 10, 1, 2));
        assert_eq!((row.buffers, row.bytes), (2, 8192));
    }

    #[test]
    fn a_snapshot_survives_its_json() {
        let row = ClientRow { pid: 3, uid: 1000, running: 1, bytes: u64::MAX, ..ClientRow::default() };
        let snapshot = Snapshot { attached: true, clients: vec![row], ..Snapshot::default() };
        assert_eq!(serde_json::from_str::<Snapshot>(&snapshot.json()).unwrap(), snapshot);
    }
}
