//! Embeds the compiled kernels of `prebuilt/` if `check.py --build` has written them. Nothing is compiled here, and no
//! toolkit is looked for: without the folder the crate builds just the same.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let folder = Path::new(&root).join("prebuilt");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=prebuilt");
    let mut rows = Vec::new();
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // FAMILY.sm_ARCH.cubin or FAMILY.compute_ARCH.ptx
        let mut parts = name.split('.');
        if let (Some(_), Some(target), Some("cubin" | "ptx"), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        {
            rows.push((target.to_owned(), path.display().to_string()));
        }
    }
    rows.sort();
    let mut code = String::from("pub(crate) static EMBEDDED: &[(&str, &[u8])] = &[\n");
    for (target, path) in rows {
        writeln!(code, "    ({target:?}, include_bytes!({path:?})),").expect("a string takes all");
    }
    code.push_str("];\n");
    let out = env::var("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("embedded.rs"), code).expect("the output folder can be written");
}
