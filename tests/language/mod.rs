//! The language: what is right compiles, what is wrong says so at its token.

mod config;
mod doors;
mod inheritance;
mod names;
mod phases;
mod presets;
mod properties;
mod random;
mod rules;
mod ui;
mod warnings;
