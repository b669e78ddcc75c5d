//! Properties: the parser against etherparse, look-ups against naive models written from the documentation, and
//! flows against a plain map of what they should do.

mod flows;
mod parser;
mod revisions;
mod tables;
mod translation;
