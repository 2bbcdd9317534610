//! `inspect`: a model file's metadata and tensors, and whether this computer has fast kernels for them.

use super::model::{self, Summary};
use crate::{
    args::InspectArgs,
    failure::Failure,
    ui::{self, Printer, Table, style},
};
use rustai::{
    Isa,
    gguf::{Array, GgufFile, Value},
    quantize::Mix,
};
use rustai_kernels_cpu::Matrix;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use std::path::Path;

/// Longest array that JSON shows whole.
const LONGEST: usize = 256;

#[derive(Serialize)]
struct Report {
    file: String,
    architecture: String,
    name: Option<String>,
    parameters: u64,
    bytes: u64,
    isa: &'static str,
    types: Vec<TypeReport>,
    metadata: Map<String, Json>,
    tensors: Vec<TensorReport>,
}

#[derive(Serialize)]
struct TypeReport {
    r#type: &'static str,
    tensors: usize,
    bytes: u64,
    /// An instruction set, `reference`, or `None` if no kernel multiplies the type.
    kernel: Option<&'static str>,
}

#[derive(Serialize)]
struct TensorReport {
    name: String,
    r#type: &'static str,
    shape: Vec<usize>,
    bytes: usize,
}

/// Prints what a file holds.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let path = model::find(args.file.as_ref().unwrap_or(&args.model.model))?;
    let file = model::open(&path)?;
    let report = report(&path, &file, !args.no_tensors)?;
    if args.json { ui::json(&report) } else { print(&report, &file, !args.no_tensors) }
}

fn report(path: &Path, file: &GgufFile, tensors: bool) -> Result<Report, Failure> {
    let isa = Isa::select()?.isa;
    let Summary { architecture, name, parameters, bytes, types } = Summary::of(file)?;
    let types = types.into_iter().map(|(dtype, (tensors, bytes))| TypeReport {
        r#type: dtype.name(),
        tensors,
        bytes,
        kernel: Matrix::kernel_for(isa, dtype),
    });
    let metadata = file.metadata().iter().map(|(key, value)| (key.to_owned(), json(value)));
    let tensors = file.tensors().iter().filter(|_| tensors).map(|tensor| TensorReport {
        name: tensor.name.clone(),
        r#type: tensor.dtype.name(),
        shape: tensor.dims.clone(),
        bytes: tensor.bytes,
    });
    Ok(Report {
        file: path.display().to_string(),
        architecture,
        name,
        parameters,
        bytes,
        isa: isa.name(),
        types: types.collect(),
        metadata: metadata.collect(),
        tensors: tensors.collect(),
    })
}

/// A metadata value as JSON. Arrays of more than [`LONGEST`] items (vocabularies) are told by type and length only.
fn json(value: &Value) -> Json {
    match value {
        Value::U8(n) => (*n).into(),
        Value::I8(n) => (*n).into(),
        Value::U16(n) => (*n).into(),
        Value::I16(n) => (*n).into(),
        Value::U32(n) => (*n).into(),
        Value::I32(n) => (*n).into(),
        Value::F32(x) => real(*x),
        Value::Bool(b) => (*b).into(),
        Value::String(text) => text.clone().into(),
        Value::U64(n) => (*n).into(),
        Value::I64(n) => (*n).into(),
        Value::F64(x) => (*x).into(),
        Value::Array(array) => items(array),
    }
}

/// The shortest number that means the same `f32`: 1e-5, not 9.999999747378752e-6. `null` if it is not finite.
fn real(x: f32) -> Json {
    x.to_string().parse::<f64>().map_or(Json::Null, Json::from)
}

fn items(array: &Array) -> Json {
    if array.len() > LONGEST {
        return json!({ "array_of": array.item_type().to_string(), "length": array.len() });
    }
    match array {
        Array::U8(items) => items.as_slice().into(),
        Array::I8(items) => items.as_slice().into(),
        Array::U16(items) => items.as_slice().into(),
        Array::I16(items) => items.as_slice().into(),
        Array::U32(items) => items.as_slice().into(),
        Array::I32(items) => items.as_slice().into(),
        Array::F32(items) => items.iter().copied().map(real).collect(),
        Array::Bool(items) => items.as_slice().into(),
        Array::String(items) => items.iter().collect(),
        Array::Array(inner) => inner.iter().map(self::items).collect(),
        Array::U64(items) => items.as_slice().into(),
        Array::I64(items) => items.as_slice().into(),
        Array::F64(items) => items.as_slice().into(),
    }
}

/// A metadata value in the table. A file's main type is a number, of which the names are added that people know.
fn shown(key: &str, value: &Value) -> String {
    let number = if key == "general.file_type" { value.to_string().parse().ok() } else { None };
    match Mix::all().find(|mix| Some(mix.file_type()) == number) {
        Some(mix) => format!("{value} ({})", mix.name()),
        None => value.to_string(),
    }
}

fn print(report: &Report, file: &GgufFile, tensors: bool) -> Result<(), Failure> {
    let mut out = Printer::default();
    let heading = style::HEADING;
    out.line(format_args!("{heading}{}{heading:#}", report.file))?;
    out.line(format_args!(
        "{}{}: {} parameters, {} in {}",
        ui::plain(&report.architecture),
        report.name.as_ref().map(|name| format!(" ({})", ui::plain(name))).unwrap_or_default(),
        ui::count(report.parameters),
        ui::bytes(report.bytes),
        ui::counted(report.types.iter().map(|row| row.tensors).sum(), "tensor"),
    ))?;
    let mut table = Table::new(&["type", ">tensors", ">size", "kernel"]);
    for row in &report.types {
        table.row(vec![
            row.r#type.into(),
            row.tensors.to_string(),
            ui::bytes(row.bytes),
            row.kernel.unwrap_or("none").into(),
        ]);
    }
    out.line("")?;
    out.piece(&table.text())?;
    let mut table = Table::new(&["metadata", ""]);
    for (key, value) in file.metadata().iter() {
        table.row(vec![ui::plain(key).into_owned(), shown(key, value)]);
    }
    out.line("")?;
    out.piece(&table.text())?;
    if tensors {
        let mut table = Table::new(&["tensor", "type", ">shape", ">size"]);
        for tensor in &report.tensors {
            let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
            table.row(vec![
                ui::plain(&tensor.name).into_owned(),
                tensor.r#type.into(),
                shape,
                ui::bytes(tensor.bytes as u64),
            ]);
        }
        out.line("")?;
        out.piece(&table.text())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_type_of_a_file_is_named() {
        assert_eq!(shown("general.file_type", &15u32.into()), "15 (Q4_K_M)");
        assert_eq!(shown("general.file_type", &999u32.into()), "999");
        assert_eq!(shown("general.quantization_version", &2u32.into()), "2");
    }
}
