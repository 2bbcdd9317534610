//! Embeds the compiled kernels of `prebuilt/` if `check.py --build` has written them, of the sources as they are. Nothing is
//! compiled here, and no toolkit is looked for: without them the crate builds just the same.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let root = Path::new(&root);
    let folder = root.join("prebuilt");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=cuda");
    // What is not there counts as changed whenever cargo looks. In a checkout the folder is there, if empty.
    if folder.exists() {
        println!("cargo::rerun-if-changed=prebuilt");
    }
    let mut rows = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // FAMILY.sm_ARCH.cubin.zz or FAMILY.compute_ARCH.ptx.zz
        if let [_, target, "cubin" | "ptx", "zz"] = name.split('.').collect::<Vec<_>>()[..] {
            rows.push((target.to_owned(), path.display().to_string()));
        }
    }
    rows.sort();
    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap_or_default();
    if !rows.is_empty() && !manifest.contains(&format!("\"sources\": \"{:016x}\"", digest(&root.join("cuda")))) {
        println!("cargo::warning=the kernels in prebuilt/ are of other sources and are left out; run check.py --build");
        rows.clear();
    }
    let mut code = String::from("pub(crate) static EMBEDDED: &[(&str, &[u8])] = &[\n");
    for (target, path) in rows {
        writeln!(code, "    ({target:?}, include_bytes!({path:?})),").expect("a string takes all");
    }
    code.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("embedded.rs"), code).expect("the output folder can be written");
}

/// Of all sources, as `check.py` computes it: FNV-1a, 64 bits, over each file's name, a zero, its bytes and a zero.
fn digest(folder: &Path) -> u64 {
    let mut files: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    for file in files {
        let name = file.file_name().to_string_lossy().into_owned();
        let bytes = fs::read(file.path()).expect("a source can be read");
        for byte in name.bytes().chain([0]).chain(bytes).chain([0]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    state
}
