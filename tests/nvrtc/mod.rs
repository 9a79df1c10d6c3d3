//! The run-time compiler, without a GPU: cubins, resources, and what its errors say.

mod compiler;
mod export;
mod gallery;
mod heads;
mod hopper;
mod kv_types;
mod library;
mod model;
mod scoring;
mod store;
