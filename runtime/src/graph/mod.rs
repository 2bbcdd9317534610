//! The graph: what a model computes, with typed and shaped values and no word on how or where.
//!
//! An architecture builds a [`Graph`] through [`GraphBuilder`], which checks every shape as it goes; a plan
//! ([`crate::plan`]) turns the graph into kernel calls. Weights are references by name that a [`WeightSource`] answers
//! at load time, or small `f32` tensors inside the graph.
//!
//! This module owns the operations and their shape rules, the rewrites that hold for every backend ([`rewrite`]), the
//! drawings ([`text`], [`dot`], [`svg`]) and a slow [`interpret`]er that says what a graph means. It must never learn of
//! a backend, an architecture or a file format.
//!
//! ```
//! use rustai::graph::{GraphBuilder, Rows, text};
//!
//! let mut b = GraphBuilder::new();
//! let x = b.input("x", Rows::Tokens, 4)?;
//! let w = b.inline("w", &[4, 2], vec![1.0; 8])?;
//! let y = b.matmul("y", x, w, None)?;
//! let y = b.softmax("p", y)?;
//! let graph = b.finish(y)?;
//! assert!(text(&graph).contains("%1 y = matmul(%0, w F32[4, 2]) -> f32[T, 2]"));
//! # Ok::<(), rustai::graph::GraphError>(())
//! ```
#![forbid(unsafe_code)]

mod builder;
mod cut;
mod dot;
mod error;
mod fold;
pub mod interpret;
mod ir;
mod layout;
pub mod rewrite;
mod svg;
mod text;
mod weights;

pub use builder::GraphBuilder;
pub use cut::{Cut, cut, cuts};
pub use dot::dot;
pub use error::GraphError;
pub use ir::{Attention, Graph, Node, Op, Rope, RopeStyle, Rows, Shape, ValueId, Weight, WeightId};
pub use svg::svg;
pub use text::text;
pub use weights::{Place, WeightInfo, WeightSource, read_floats};
