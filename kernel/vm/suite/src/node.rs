//! The module and its two nodes.

use crate::{Test, sides::*, sys::*};
use rustai_abi::queue::*;
use std::{fs, os::unix::fs::MetadataExt, path::Path};

const MODULE: &str = "/rustai.ko";

/// Loads the module; the machine was booted a moment ago.
pub fn load() {
    try_load().expect("the module loads");
}

/// Loads the module, which may fail.
pub fn try_load() -> Sys<()> {
    load_module(Path::new(MODULE))
}

pub const TESTS: &[Test] = &[
    ("two nodes, the server's for root alone", || {
        let mode = |path| {
            let node = fs::metadata(path).unwrap();
            (node.mode() & 0o7777, node.uid(), node.gid())
        };
        assert_eq!(mode("/dev/rustai"), (0o660, 0, 0));
        assert_eq!(mode("/dev/rustai-engine"), (0o600, 0, 0));
    }),
    ("QUERY tells version, features and limits, with and without a server", || {
        let device = Device::client().unwrap();
        let mut query = Query::new();
        device.call(op::QUERY, &mut query).unwrap();
        assert_eq!((query.major, query.minor, query.server, query.opcodes), (1, 0, server_state::ABSENT, 0));
        assert_eq!(query.features, feature::RING | feature::EVENTFD | feature::REATTACH | feature::URING);
        assert_eq!((query.max_entries, query.max_tensors, query.buffer_align), (MAX_ENTRIES, 16, 4096));
        let server = Server::new();
        let mut with = Query::new();
        server.device.call(op::QUERY, &mut with).unwrap();
        assert_eq!((with.server, with.opcodes, with.epoch), (1, attach().opcodes, query.epoch + 1));
    }),
    ("nothing but the interface: no read, write or seek", || {
        let device = Device::client().unwrap();
        let file = fs::File::from(dup(&device.0));
        use std::io::{Read, Write};
        assert_eq!((&file).read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(EINVAL));
        assert_eq!((&file).write(&[0; 8]).unwrap_err().raw_os_error(), Some(EINVAL));
    }),
    ("a busy module does not unload, an idle one does, and loads again", || {
        let refused = |why: &str| {
            let result = unload_module("rustai");
            assert!(matches!(result, Err(EBUSY | EAGAIN)), "{why}: {result:?}");
        };
        let device = Device::client().unwrap();
        refused("an open client");
        drop(device);
        let engine = Device::engine().unwrap();
        refused("an open engine");
        drop(engine);
        let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
        client.admit(&Job { flags: job_flag::DEADLINE, deadline_ns: in_ms(60_000), ..nop(1) });
        refused("a job in the queue");
        let Client { device, ring, .. } = client;
        drop((server, device));
        refused("a mapping of a ring");
        drop(ring);
        // The clock was set for a minute from now: unloading takes it back.
        for _ in 0..5 {
            unload_module("rustai").expect("it is idle");
            assert!(fs::metadata("/dev/rustai").is_err() && fs::metadata("/sys/kernel/debug/rustai").is_err());
            load();
            Report::until("empty", Report::is_empty);
            let (server, client) = (Server::new(), Client::new(8, policy::HOLD));
            assert_eq!(server.epoch, 1);
            client.admit(&Job { flags: job_flag::DEADLINE, deadline_ns: in_ms(60_000), ..nop(1) });
            drop((server, client));
        }
    }),
    ("unloading under load is refused, and nobody is harmed", || {
        let server = serving();
        let client = Client::new(64, policy::HOLD);
        for user_data in 0..200 {
            client.admit(&nop(user_data));
            if user_data % 20 == 0 {
                assert!(unload_module("rustai").is_err());
            }
            assert_eq!(client.result(user_data), 0);
        }
        server.kill();
    }),
    ("opening and closing again and again", || {
        for _ in 0..300 {
            drop(Device::client().unwrap());
        }
        for _ in 0..50 {
            drop(Client::new(64, policy::HOLD));
        }
    }),
    ("all contexts: EDQUOT for the user, ENFILE for all", || {
        let mut devices = Vec::new();
        let refused = loop {
            match Device::client() {
                Ok(device) => devices.push(device),
                Err(errno) => break errno,
            }
        };
        assert_eq!((devices.len(), refused), (96, EDQUOT));
    }),
];
