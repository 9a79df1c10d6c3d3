//! The language: what is right compiles, what is wrong says so at its token.

mod config;
mod doors;
mod presets;
mod properties;
mod rules;
mod ui;
