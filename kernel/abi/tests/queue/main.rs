//! The tensor queue's rules, tested natively: each row of the errno table, the state machines exhaustively, the whole
//! queue by small models and random walks, and the C header against the Rust layouts.

mod errnos;
mod header;
mod model;
mod support;
mod units;
