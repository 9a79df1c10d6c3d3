//! The run-time compiler, without a GPU: cubins, resources, and what its errors say.

mod compiler;
mod library;
mod model;
mod scratch;
