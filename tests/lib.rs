//! What the tests share.

pub mod support;
