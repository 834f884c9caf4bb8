//! Kernel tasks: bodies that run in kernel mode only.

use alloc::sync::Arc;

use ursa_hal::task::Task;

/// Starts a kernel task that runs `body` and ends. `None` when memory is short.
pub fn spawn_kernel(name: &str, body: impl FnOnce() + Send + 'static) -> Option<Arc<Task>> {
    let task = super::new_task(name, None, None, body)?;
    super::wake_new(&task);
    Some(task)
}
