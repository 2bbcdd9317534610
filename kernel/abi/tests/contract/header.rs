//! The C header against the Rust layouts: sizes, offsets and numbers are turned into static assertions, which the C
//! compiler judges for 64-bit and for 32-bit programs.
//!
//! This needs neither libclang nor a 32-bit C library, only the compiler that a Rust host links with. Where bindgen is at
//! hand, `kernel/vm/layout.sh` asks it the same.

use rustai_abi::queue::*;
use std::{fmt::Write as _, io::Write as _, process::Command};

fn layout<T: Wire>(out: &mut String, structs: &mut usize) {
    let name = T::C_NAME;
    writeln!(out, "_Static_assert(sizeof(struct {name}) == {}, \"size of {name}\");", T::SIZE).unwrap();
    let mut end = 0;
    for field in T::FIELDS {
        let (field_name, offset, size) = (field.name, field.offset, field.size);
        assert_eq!(offset, end, "{name}.{field_name} leaves a gap");
        end = offset + size;
        let member = format!("((struct {name} *)0)->{field_name}");
        writeln!(
            out,
            "_Static_assert(__builtin_offsetof(struct {name}, {field_name}) == {offset}, \"{name}.{field_name}\");"
        )
        .unwrap();
        writeln!(out, "_Static_assert(sizeof({member}) == {size}, \"size of {name}.{field_name}\");").unwrap();
    }
    assert_eq!(end, T::SIZE, "{name} has more fields than it says");
    *structs += 1;
}

/// What the compiler must agree with.
fn assertions() -> String {
    let mut out = String::from("#include \"rustai.h\"\n");
    let mut structs = 0;
    layout::<Job>(&mut out, &mut structs);
    layout::<Tensor>(&mut out, &mut structs);
    layout::<Completion>(&mut out, &mut structs);
    layout::<RingHeader>(&mut out, &mut structs);
    layout::<Query>(&mut out, &mut structs);
    layout::<Setup>(&mut out, &mut structs);
    layout::<BufRegister>(&mut out, &mut structs);
    layout::<BufRelease>(&mut out, &mut structs);
    layout::<Submit>(&mut out, &mut structs);
    layout::<UringSubmit>(&mut out, &mut structs);
    layout::<Wait>(&mut out, &mut structs);
    layout::<Cancel>(&mut out, &mut structs);
    layout::<EventFd>(&mut out, &mut structs);
    layout::<Limits>(&mut out, &mut structs);
    layout::<Stat>(&mut out, &mut structs);
    layout::<Attach>(&mut out, &mut structs);
    layout::<Fetch>(&mut out, &mut structs);
    layout::<Record>(&mut out, &mut structs);
    layout::<BufMap>(&mut out, &mut structs);
    layout::<Progress>(&mut out, &mut structs);
    layout::<Commit>(&mut out, &mut structs);
    layout::<Outcome>(&mut out, &mut structs);
    layout::<Ack>(&mut out, &mut structs);
    layout::<Detach>(&mut out, &mut structs);
    let header = include_str!("../../../include/uapi/rustai.h");
    assert_eq!(header.matches("\nstruct rustai_").count(), structs, "the header has structs that are not compared");
    #[allow(clippy::unnecessary_cast, reason = "the numbers have several widths")]
    let constants: &[(&str, u64)] = &[
        ("RUSTAI_OP_QUERY", op::QUERY as u64),
        ("RUSTAI_OP_SETUP", op::SETUP as u64),
        ("RUSTAI_OP_BUF_REGISTER", op::BUF_REGISTER as u64),
        ("RUSTAI_OP_BUF_RELEASE", op::BUF_RELEASE as u64),
        ("RUSTAI_OP_SUBMIT", op::SUBMIT as u64),
        ("RUSTAI_OP_WAIT", op::WAIT as u64),
        ("RUSTAI_OP_CANCEL", op::CANCEL as u64),
        ("RUSTAI_OP_EVENTFD", op::EVENTFD as u64),
        ("RUSTAI_OP_LIMITS", op::LIMITS as u64),
        ("RUSTAI_OP_STAT", op::STAT as u64),
        ("RUSTAI_OP_ATTACH", op::ATTACH as u64),
        ("RUSTAI_OP_FETCH", op::FETCH as u64),
        ("RUSTAI_OP_BUF_MAP", op::BUF_MAP as u64),
        ("RUSTAI_OP_PROGRESS", op::PROGRESS as u64),
        ("RUSTAI_OP_COMMIT", op::COMMIT as u64),
        ("RUSTAI_OP_ACK", op::ACK as u64),
        ("RUSTAI_OP_DETACH", op::DETACH as u64),
        ("RUSTAI_JOB_NOP", opcode::NOP as u64),
        ("RUSTAI_JOB_ECHO", opcode::ECHO as u64),
        ("RUSTAI_JOB_TOKENIZE", opcode::TOKENIZE as u64),
        ("RUSTAI_JOB_EMBED", opcode::EMBED as u64),
        ("RUSTAI_JOB_RERANK", opcode::RERANK as u64),
        ("RUSTAI_JOB_LOGITS", opcode::LOGITS as u64),
        ("RUSTAI_JOB_GENERATE", opcode::GENERATE as u64),
        ("RUSTAI_JOB_MATMUL", opcode::MATMUL as u64),
        ("RUSTAI_JOB_SESSION_OPEN", opcode::SESSION_OPEN as u64),
        ("RUSTAI_JOB_SESSION_CLOSE", opcode::SESSION_CLOSE as u64),
        ("RUSTAI_JOB_F_DEADLINE", job_flag::DEADLINE as u64),
        ("RUSTAI_JOB_F_DEP", job_flag::DEP as u64),
        ("RUSTAI_JOB_F_SESSION", job_flag::SESSION as u64),
        ("RUSTAI_TENSOR_F_OUT", tensor_flag::OUT as u64),
        ("RUSTAI_TENSOR_F_IN_PLACE", tensor_flag::IN_PLACE as u64),
        ("RUSTAI_TENSOR_F_INDEX", tensor_flag::INDEX as u64),
        ("RUSTAI_CQE_F_MORE", cqe_flag::MORE as u64),
        ("RUSTAI_CQE_F_DEP", cqe_flag::DEP as u64),
        ("RUSTAI_F_BUF_RW", op_flag::BUF_RW as u64),
        ("RUSTAI_F_DEADLINE", op_flag::DEADLINE as u64),
        ("RUSTAI_F_NO_WAIT", op_flag::NO_WAIT as u64),
        ("RUSTAI_F_BY_USER_DATA", op_flag::BY_USER_DATA as u64),
        ("RUSTAI_F_BY_SESSION", op_flag::BY_SESSION as u64),
        ("RUSTAI_F_ALL", op_flag::ALL as u64),
        ("RUSTAI_F_SETTLE", op_flag::SETTLE as u64),
        ("RUSTAI_F_REMOVE", op_flag::REMOVE as u64),
        ("RUSTAI_F_SET", op_flag::SET as u64),
        ("RUSTAI_F_MAPPED_RW", op_flag::MAPPED_RW as u64),
        ("RUSTAI_POLICY_HOLD", policy::HOLD as u64),
        ("RUSTAI_POLICY_FAIL", policy::FAIL as u64),
        ("RUSTAI_POLICY_REISSUE", policy::REISSUE as u64),
        ("RUSTAI_CLASS_BATCH", class::BATCH as u64),
        ("RUSTAI_CLASS_NORMAL", class::NORMAL as u64),
        ("RUSTAI_CLASS_INTERACTIVE", class::INTERACTIVE as u64),
        ("RUSTAI_RECORD_JOB", record::JOB as u64),
        ("RUSTAI_RECORD_CANCEL", record::CANCEL as u64),
        ("RUSTAI_RECORD_GONE", record::GONE as u64),
        ("RUSTAI_SERVER_ABSENT", server_state::ABSENT as u64),
        ("RUSTAI_SERVER_ATTACHED", server_state::ATTACHED as u64),
        ("RUSTAI_FEATURE_RING", feature::RING as u64),
        ("RUSTAI_FEATURE_EVENTFD", feature::EVENTFD as u64),
        ("RUSTAI_FEATURE_REATTACH", feature::REATTACH as u64),
        ("RUSTAI_FEATURE_URING", feature::URING as u64),
        ("RUSTAI_MAX_TENSORS", MAX_TENSORS as u64),
        ("RUSTAI_MAX_DIMS", MAX_DIMS as u64),
        ("RUSTAI_MAX_DIM", MAX_DIM as u64),
        ("RUSTAI_MAX_ENTRIES", MAX_ENTRIES as u64),
        ("RUSTAI_MAX_BATCH", MAX_BATCH as u64),
        ("RUSTAI_MAX_STRUCT", MAX_STRUCT as u64),
        ("RUSTAI_MAX_REISSUES", MAX_REISSUES as u64),
        ("RUSTAI_DEP_WINDOW", DEP_WINDOW as u64),
        ("RUSTAI_BUFFER_ALIGN", BUFFER_ALIGN as u64),
        ("RUSTAI_RING_OFFSET", RING_OFFSET as u64),
        ("RUSTAI_RING_ENTRIES_OFFSET", RING_ENTRIES_OFFSET as u64),
        ("RUSTAI_QUANT_GGUF", QUANT_GGUF as u64),
        ("RUSTAI_ABI_MAJOR", ABI_MAJOR as u64),
        ("RUSTAI_ABI_MINOR", ABI_MINOR as u64),
        ("RUSTAI_IOCTL_TYPE", IOCTL_TYPE as u64),
    ];
    for (name, value) in constants {
        writeln!(out, "_Static_assert({name} == {value}ULL, \"{name}\");").unwrap();
    }
    // RUSTAI_IOC and the include guard are no numbers.
    assert_eq!(header.matches("#define ").count(), constants.len() + 2, "the header has numbers that are not compared");
    writeln!(out, "_Static_assert(RUSTAI_IOC(RUSTAI_OP_SUBMIT) == {}U, \"ioctl\");", ioctl(op::SUBMIT)).unwrap();
    out
}

fn compiles(source: &str, flag: &str) -> Result<(), String> {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/uapi");
    // Debian keeps <asm/types.h> in the folder of the native architecture; it is the same for both widths.
    let native = format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut child = Command::new(&compiler)
        .args([flag, "-std=c11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fsyntax-only", "-I", include])
        .args(["-idirafter", &native, "-x", "c", "-"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .map_err(|err| format!("{compiler} does not start ({err}); name a C compiler in CC"))?;
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn c_and_rust_agree() {
    let source = assertions();
    let widths: &[&str] = if cfg!(target_arch = "x86_64") { &["-m64", "-m32"] } else { &["-O0"] };
    for flag in widths {
        compiles(&source, flag).unwrap_or_else(|err| panic!("{flag}: {err}"));
    }
    // The check can fail: a wrong size is refused.
    let wrong = source + "_Static_assert(sizeof(struct rustai_job) == 127, \"\");\n";
    for flag in widths {
        assert!(compiles(&wrong, flag).is_err());
    }
}
