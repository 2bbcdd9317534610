//! The fuzzer's description of the interface, `tests/syzkaller/rustai.txt`, against the Rust layouts: it names every
//! operation by its number and every struct with the same fields.

use rustai_abi::queue::*;
use std::collections::BTreeMap;

const DESCRIPTION: &str = include_str!("../../../../tests/syzkaller/rustai.txt");

/// Bytes of a type of the description; `None` if the name is unknown.
fn size_of(kind: &str, resources: &BTreeMap<&str, &str>) -> Option<usize> {
    let base = kind.split('[').next()?;
    let inside = kind.strip_suffix(']').and_then(|kind| kind.split_once('[')).map(|(_, inside)| inside);
    match base {
        "int8" => Some(1),
        "int16" => Some(2),
        "int32" | "fd" => Some(4),
        "int64" | "ptr64" => Some(8),
        // The last word is the type of the integer.
        "const" | "flags" | "len" | "bytesize" => size_of(inside?.rsplit(", ").next()?, resources),
        "array" => {
            let (element, count) = inside?.rsplit_once(", ")?;
            Some(size_of(element, resources)? * count.parse::<usize>().ok()?)
        }
        "fd_memfd" | "fd_event" => Some(4),
        other => size_of(resources.get(other)?, resources),
    }
}

/// Fields of each struct: name and bytes.
fn structs() -> BTreeMap<&'static str, Vec<(&'static str, usize)>> {
    let resources: BTreeMap<&str, &str> = DESCRIPTION
        .lines()
        .filter_map(|line| line.strip_prefix("resource ")?.split(':').next()?.trim().strip_suffix(']')?.split_once('['))
        .collect();
    let mut structs = BTreeMap::new();
    let mut lines = DESCRIPTION.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_suffix(" {") else { continue };
        let fields = lines.by_ref().take_while(|&line| line != "}").map(|line| {
            let mut words = line.split('\t').filter(|word| !word.is_empty());
            let (field, kind) = (words.next().expect("a name"), words.next().expect("a type"));
            let size = size_of(kind, &resources).unwrap_or_else(|| panic!("{name}.{field}: {kind} is no known type"));
            (field, size)
        });
        assert!(structs.insert(name, fields.collect()).is_none(), "{name} is there twice");
    }
    structs
}

#[test]
fn structs_have_the_fields_of_the_interface() {
    let mut described = structs();
    macro_rules! compare {
        ($($ty:ident)*) => {
            $(
                let name = $ty::C_NAME;
                let fields = described.remove(name).unwrap_or_else(|| panic!("{name} is not described"));
                let expected: Vec<_> = $ty::FIELDS.iter().map(|field| (field.name, field.size)).collect();
                assert_eq!(fields, expected, "{name}");
            )*
        };
    }
    compare! {
        Job Tensor Query Setup BufRegister BufRelease Submit UringSubmit Wait Cancel EventFd Limits Stat Attach Fetch Record BufMap Progress
        Commit Outcome Ack Detach
    }
    assert!(described.is_empty(), "the interface has no {:?}", described.keys());
}

#[test]
fn operations_have_their_numbers() {
    let operations = [
        ("QUERY", op::QUERY),
        ("SETUP", op::SETUP),
        ("BUF_REGISTER", op::BUF_REGISTER),
        ("BUF_RELEASE", op::BUF_RELEASE),
        ("SUBMIT", op::SUBMIT),
        ("WAIT", op::WAIT),
        ("CANCEL", op::CANCEL),
        ("EVENTFD", op::EVENTFD),
        ("LIMITS", op::LIMITS),
        ("STAT", op::STAT),
        ("ATTACH", op::ATTACH),
        ("FETCH", op::FETCH),
        ("BUF_MAP", op::BUF_MAP),
        ("PROGRESS", op::PROGRESS),
        ("COMMIT", op::COMMIT),
        ("ACK", op::ACK),
        ("DETACH", op::DETACH),
    ];
    for (name, number) in operations {
        let node = if op::is_server(number) && number != op::QUERY { "fd_rustai_engine" } else { "fd_rustai" };
        let start = format!("ioctl$RUSTAI_{name}(fd {node}, cmd const[{:#x}], arg ptr[", ioctl(number));
        assert!(DESCRIPTION.lines().any(|line| line.starts_with(&start)), "no line starts with {start}");
    }
    assert_eq!(DESCRIPTION.matches("ioctl$RUSTAI_").count(), operations.len());
}
