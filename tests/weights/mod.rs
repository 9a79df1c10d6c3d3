//! The model file: container, tensors, tokenizer, chat template, fetch.

mod chat;
mod damaged;
mod fetch;
mod messages;
mod tensors;
mod tokenizer;
