//! Which products are measured.

use super::machine::{Caches, Level};
use crate::{args::KernelsArgs, failure::Failure};
use rustai::{DType, Isa, backend::cuda};
use rustai_kernels_cpu::{
    Matrix,
    bench::{MODELS, Model, Residence, Shape, TOKENS},
    formats,
};

/// Types that common files use.
const COMMON: [DType; 5] = [DType::Q4_0, DType::Q4_K, DType::Q6_K, DType::Q8_0, DType::F16];

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runner {
    /// The CPU, with the kernels of an instruction set.
    Cpu(Isa),
    /// A GPU.
    Cuda,
}

impl Runner {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu(isa) => isa.name(),
            Self::Cuda => "cuda",
        }
    }
}

/// A matrix, what multiplies it, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub runner: Runner,
    pub dtype: DType,
    pub model: &'static str,
    pub shape: Shape,
    pub level: Level,
    pub residence: Residence,
}

impl Case {
    /// Bytes of one matrix.
    pub fn matrix_bytes(&self) -> usize {
        self.dtype.bytes_for(self.shape.rows * self.shape.cols).unwrap_or(0)
    }

    /// Bytes of weights that are kept while it is measured.
    pub fn bytes(&self) -> usize {
        self.residence.matrices(self.matrix_bytes()) * self.matrix_bytes()
    }
}

/// What the flags ask for.
#[derive(Debug)]
pub struct Selection {
    pub runners: Vec<Runner>,
    pub cases: Vec<Case>,
    pub tokens: Vec<usize>,
}

impl Selection {
    /// Levels that weights are read from, memory always among them.
    pub fn levels(&self) -> Vec<Level> {
        let used = |level: &Level| *level == Level::Memory || self.cases.iter().any(|case| case.level == *level);
        [Level::L2, Level::L3, Level::Memory].into_iter().filter(used).collect()
    }
}

/// Reads the flags. On a GPU, `caches` are its own and `threads` is 1.
pub fn select(args: &KernelsArgs, caches: &Caches, threads: usize, on_gpu: bool) -> Result<Selection, Failure> {
    let runners = match on_gpu {
        true => vec![Runner::Cuda],
        false => isas(args)?.into_iter().map(Runner::Cpu).collect(),
    };
    let types = types(args)?;
    let mut tokens: Vec<usize> = args.tokens.iter().map(|&tokens| tokens as usize).collect();
    if tokens.is_empty() {
        tokens = if args.quick { vec![1, 16, 512] } else { TOKENS.to_vec() };
    }
    tokens.sort_unstable();
    tokens.dedup();

    let mut cases = Vec::new();
    for (model, memory, cache) in models(args)? {
        for shape in &model.shapes[..if args.all { model.shapes.len() } else { 1 }] {
            let places = [memory.then_some(Residence::Memory(caches.overflow())), cache.then_some(Residence::Cache)];
            for residence in places.into_iter().flatten() {
                for &runner in &runners {
                    for &dtype in &types {
                        let Some(bytes) = dtype.bytes_for(shape.cols).map(|row| row * shape.rows) else { continue };
                        let level = match residence {
                            Residence::Memory(_) => Level::Memory,
                            Residence::Cache => caches.level(bytes as u64, threads),
                        };
                        let fits = residence != Residence::Cache || level != Level::Memory;
                        let has_kernel = match runner {
                            Runner::Cpu(isa) => Matrix::kernel_for(isa, dtype).is_some(),
                            Runner::Cuda => cuda::has_kernel(dtype, shape.rows, shape.cols),
                        };
                        if fits && has_kernel {
                            cases.push(Case { runner, dtype, model: model.name, shape: *shape, level, residence });
                        }
                    }
                }
            }
        }
    }
    if cases.is_empty() {
        return Err(Failure::usage("none of the types given can be multiplied")
            .help("`rustai inspect` and the README name the types that have kernels"));
    }
    Ok(Selection { runners, cases, tokens })
}

fn isas(args: &KernelsArgs) -> Result<Vec<Isa>, Failure> {
    let here = |isa: &Isa| isa.missing_feature().is_none();
    if args.all {
        return Ok(Isa::ALL.into_iter().filter(|isa| *isa != Isa::Reference).filter(here).collect());
    }
    if args.isas.is_empty() {
        return Ok(vec![Isa::select()?.isa]);
    }
    let find = |name: &String| {
        let isa = Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names = Isa::ALL.map(Isa::name).join(", ");
            Failure::usage(format!("{name:?} is no instruction set")).help(format!("give some of: {names}"))
        })?;
        match isa.missing_feature() {
            None => Ok(isa),
            Some(missing) => Err(Failure::usage(format!("{name} kernels need {missing}, which this processor lacks"))
                .help(format!("the best here is {}", Isa::best().name()))),
        }
    };
    args.isas.iter().map(find).collect()
}

fn types(args: &KernelsArgs) -> Result<Vec<DType>, Failure> {
    let known = || formats::table().iter().map(|format| format.dtype);
    if args.all {
        return Ok(known().collect());
    }
    if args.types.is_empty() {
        return Ok(COMMON.into());
    }
    let find = |name: &String| {
        known().find(|dtype| dtype.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names = known().map(DType::name).collect::<Vec<_>>().join(", ");
            Failure::usage(format!("{name:?} is no type of weights that there is code for"))
                .help(format!("give some of: {names}"))
        })
    };
    args.types.iter().map(find).collect()
}

/// The models, with whether each is measured in memory and in a cache.
fn models(args: &KernelsArgs) -> Result<Vec<(&'static Model, bool, bool)>, Failure> {
    let all: &'static [Model] = &MODELS;
    if args.all {
        return Ok(all.iter().map(|model| (model, true, true)).collect());
    }
    if args.models.is_empty() {
        // The commonest question twice: how fast a model's weights stream, and what the arithmetic does without the wait.
        let [small, middle, _] = all else { return Ok(Vec::new()) };
        return Ok(vec![(middle, true, false), (small, false, true)]);
    }
    let find = |name: &String| {
        let model = all.iter().find(|model| model.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let names = all.iter().map(|model| format!("{} ({})", model.name, model.like)).collect::<Vec<_>>();
            Failure::usage(format!("{name:?} is none of the models whose shapes are known"))
                .help(format!("give some of: {}", names.join(", ")))
        })?;
        Ok((model, true, true))
    };
    args.models.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustai::backend::DeviceChoice;

    fn args() -> KernelsArgs {
        KernelsArgs {
            types: Vec::new(),
            isas: Vec::new(),
            tokens: Vec::new(),
            models: Vec::new(),
            all: false,
            quick: false,
            threads: 1,
            json: false,
            svg: None,
            device: DeviceChoice::Cpu,
        }
    }

    #[test]
    fn the_default_is_small_and_all_is_everything() {
        let caches = Caches::detect();
        let few = select(&args(), &caches, 1, false).unwrap();
        assert_eq!(few.tokens, TOKENS);
        assert!(few.cases.iter().any(|case| case.level == Level::Memory));
        assert!(few.cases.len() <= 2 * COMMON.len());
        let all = select(&KernelsArgs { all: true, ..args() }, &caches, 1, false).unwrap();
        assert!(all.runners.is_empty() || all.cases.len() > few.cases.len());
        assert!(all.cases.iter().all(|case| case.runner != Runner::Cpu(Isa::Reference) && case.bytes() > 0));
    }

    #[test]
    fn a_gpu_takes_the_types_that_it_has_kernels_for() {
        let caches = Caches::of_gpu(50 << 20);
        let args = KernelsArgs { types: vec!["Q4_0".into(), "IQ2_XXS".into()], ..args() };
        let selection = select(&args, &caches, 1, true).unwrap();
        assert!(selection.cases.iter().all(|case| case.runner == Runner::Cuda && case.dtype == DType::Q4_0));
        assert!(selection.cases.iter().any(|case| case.residence == Residence::Memory(150 << 20)));
    }

    #[test]
    fn names_are_checked() {
        let caches = Caches::detect();
        let names = |names: &str| names.split(',').map(str::to_owned).collect::<Vec<_>>();
        let given = KernelsArgs {
            types: names("q4_0,f16"),
            isas: names("Reference"),
            models: names("8B"),
            tokens: vec![8, 2, 8],
            ..args()
        };
        let selection = select(&given, &caches, 2, false).unwrap();
        assert_eq!((selection.runners, selection.tokens), (vec![Runner::Cpu(Isa::Reference)], vec![2, 8]));
        assert!(selection.cases.iter().all(|case| case.model == "8b" && case.shape.rows == 4096));
        for wrong in [
            KernelsArgs { types: names("Q4_0,Q9"), ..args() },
            KernelsArgs { isas: names("sse9"), ..args() },
            KernelsArgs { models: names("70b"), ..args() },
        ] {
            let Err(Failure::Told { help: Some(_), code: 2, .. }) = select(&wrong, &caches, 1, false) else {
                panic!("{wrong:?}")
            };
        }
    }
}
