//! Bytes as a job with its tensors: judged by `validate` alone, then admitted to a queue, fetched and committed. Nothing
//! may panic, the invariants hold, and what `validate` accepts lies inside its buffer.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rustai_abi::queue::*;

struct Nobody;

impl Sink for Nobody {
    fn post(&mut self, _: usize, _: usize, _: &Completion, _: u32) {}
    fn wake_client(&mut self, _: usize) {}
    fn wake_server(&mut self) {}
    fn drop_buffer(&mut self, _: usize) {}
}

const LEN: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some(job) = Job::read(bytes) else { return };
    let tensors: Vec<Tensor> = bytes[Job::SIZE..].chunks(Tensor::SIZE).filter_map(Tensor::read).take(17).collect();
    let rules = JobRules { now_ns: 1000, seq: 2000, class_cap: class::INTERACTIVE };
    let view = |id: u32| (id < 3).then_some(BufferView { generation: id, len: LEN, writable: id != 1 });
    if validate(&job, &tensors, &rules, view).is_ok() {
        for t in &tensors {
            assert!(t.buffer < 3 && t.offset.checked_add(t.byte_len).unwrap() <= LEN && t.byte_len > 0);
            assert!(t.flags & tensor_flag::OUT == 0 || t.buffer != 1);
        }
    }

    let limits = Limits { max_jobs: 4, max_buffers: 2, max_bytes: 2 * LEN, class_cap: 2, weight: 1, ..Limits::new() };
    let jobs = vec![JobSlot::new(); 4];
    let mut core =
        Core::new(jobs, vec![ContextSlot::new()], vec![BufferSlot::new(); 2], limits, 4, 2 * LEN, BASE_FEATURES).unwrap();
    let id = core.open(0).unwrap();
    core.setup(id, &Setup { major: ABI_MAJOR, entries: 8, ..Setup::new() }).unwrap();
    core.register(id, LEN, true).unwrap();
    core.register(id, LEN, false).unwrap();
    core.attach(&Attach { major: ABI_MAJOR, opcodes: u64::MAX, ..Attach::new() }, &mut Nobody).unwrap();
    let admitted = core.submit(id, &job, &tensors, 1000, &mut Nobody).is_ok();
    core.audit().unwrap();
    let mut out = [0; MAX_RECORD];
    if let Ok(Some((Fetched::Job(ticket), _))) = core.fetch(1000, &mut out, &mut Nobody) {
        let outcome = Outcome { slot: ticket.slot, generation: ticket.generation, ..Outcome::new() };
        core.commit(&outcome, &mut Nobody).unwrap();
    }
    core.audit().unwrap();
    assert_eq!(core.stat(id).unwrap().completed, u64::from(admitted));
});
