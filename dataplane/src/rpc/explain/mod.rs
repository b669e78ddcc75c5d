//! Answers to "what would become of it, and why": of connections to Services ([`service`]), and by policies
//! ([`connection`]).

pub mod connection;
pub mod service;
