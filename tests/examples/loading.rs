//! How long the weights of a model take to a device, which the stand-in for the driver library plays with memory of the host.
//!
//! `loading MODEL RUNS`: with the file in the page cache and without it, by mapping it and as the program does it, which reads
//! float weights by io_uring; one after the other, RUNS times, and the medians. On a shared machine run it by `chrt -f 3`.

use rustai::{
    backend::DeviceChoice,
    gguf::GgufFile,
    model::{self, LoadOptions, ModelFile},
};
use rustai_cuda_standin::Standin;
use rustai_tests::Elsewhere;
use rustix::fs::{Advice, fadvise};
use std::{error::Error, fs::File, io, path::Path, time::Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: loading MODEL RUNS";

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, runs] = &args[..] else { return Err(USAGE.into()) };
    let (path, runs) = (Path::new(path), runs.parse::<usize>()?.max(1));
    let folder = tempfile::tempdir()?;
    let _standin = Standin::new(folder.path());
    std::fs::write(folder.path().join("all.sm_90a.cubin"), b"// the stand-in has all kernels in it\0")?;
    let options = LoadOptions {
        context: 128,
        max_batch: 16,
        device: DeviceChoice::Cuda(0),
        cuda_kernels: Some(folder.path().to_owned()),
        ..LoadOptions::default()
    };
    for cached in [true, false] {
        // The first run, too, finds what the others find.
        io::copy(&mut File::open(path)?, &mut io::sink())?;
        let (mut mapped, mut read) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            for (times, is_mapped) in [(&mut mapped, true), (&mut read, false)] {
                if !cached {
                    let file = File::open(path)?;
                    file.sync_all()?;
                    fadvise(&file, 0, None, Advice::DontNeed)?;
                }
                let file = GgufFile::open(path)?;
                times.push(if is_mapped {
                    seconds(&Elsewhere::mapped(&file), &options)?
                } else {
                    seconds(&file, &options)?
                });
            }
        }
        let state = if cached { "in the page cache" } else { "on the disk" };
        for (way, times) in [("mapped", &mut mapped), ("read", &mut read)] {
            times.sort_by(f64::total_cmp);
            println!("{state}, {way}: median {:.3} s of {times:.3?}", times[times.len() / 2]);
        }
    }
    Ok(())
}

/// From the first weight to the last.
fn seconds(file: &dyn ModelFile, options: &LoadOptions) -> Outcome<f64> {
    let (mut first, mut last) = (None, Instant::now());
    let model = model::load(file, options, &mut |_| {
        last = Instant::now();
        first.get_or_insert(last);
    })?;
    drop(model);
    Ok((last - first.ok_or("nothing was loaded")?).as_secs_f64())
}
