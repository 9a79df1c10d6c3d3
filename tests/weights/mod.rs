//! The model file: container, tensors, tokenizer, chat template, fetch.

mod chat;
mod damaged;
mod fetch;
mod messages;
mod safetensors;
mod tensors;
mod tokenizer;
