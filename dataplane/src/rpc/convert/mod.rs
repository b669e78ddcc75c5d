//! Between the contract's messages and the tables' objects.
//!
//! Everything that comes in is checked here, field by field, and nothing that prost has generated goes further
//! in. What an object says by itself is judged here; whether two objects fit together is the control process's
//! affair, and the tables have a defined answer to it either way, but for policies whose selections are missing: such a
//! transaction is refused as a whole.

mod incoming;
mod outgoing;
#[cfg(test)]
mod tests;

pub use incoming::{
    Invalid, InvalidObject, attachment, dangling_error, filter_address, key, object, pod_name, port, protocol,
};
pub use outgoing::{
    action_message, address_messages, algorithm_message, attachment_message, backend_message,
    bandwidth_message, cidr_message, frontend_message, key_message, object_message, protocol_message,
    routing_message, tier_message,
};
