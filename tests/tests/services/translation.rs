//! What of a packet is changed, and what of the packets about it.
