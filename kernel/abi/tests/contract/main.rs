//! The tensor queue's rules, tested natively: each row of the errno table, the state machines exhaustively, the whole
//! queue by small models and random walks, and the C header and the fuzzer's description against the Rust layouts.

mod errnos;
mod header;
mod model;
mod support;
mod syzkaller;
mod units;
