//! What the tests of Wirelane stand on: packets that are easy to write and to check ([`packet`], [`check`]), a
//! small cluster ([`cluster`]), and a node over memory ports that takes packets in and says what became of
//! them ([`node`]).

pub mod check;
pub mod cluster;
pub mod node;
pub mod packet;
pub mod random;
