//! The server with processes of this machine behind it, asked by clients of its own and by kubectl.

mod backpressure;
mod kubectl;
mod limits;
mod port_forward;
mod spdy;
mod support;
mod tls;
mod websocket;
