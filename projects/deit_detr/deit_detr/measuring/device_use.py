"""What a GPU does during a step, as PyTorch's profiler sees it."""

import os
import re
from collections.abc import Callable, Iterable

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

LAUNCH = re.compile(r'cu(da)?(Graph)?Launch')  # kernels of PyTorch and Triton, and graphs
WAIT = re.compile(r'cuda(Stream|Event)Synchronize')


def device_use(step: Callable[[], None], seconds: float) -> dict[str, float]:
    """Profile one call of a step.

    Args:
        step: The step, warmed up.
        seconds: Wall time of a call without the profiler, which slows the host down.

    Returns:
        dict[str, float]: As of :func:`summarize`; zeros on a CPU.
    """
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # it would print that there is no driver
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    return summarize(profiler.events(), seconds)


def summarize(events: Iterable[FunctionEvent], seconds: float) -> dict[str, float]:
    """Return how busy the device is, and what the host asks of it.

    Args:
        events: Events of a profile, of the host and the device.
        seconds: Wall time.

    Returns:
        dict[str, float]: ``busy``, the share of the wall time during which the device runs kernels or copies, and the
        numbers of ``launches`` (of kernels and graphs), of ``waits`` (the host waits for a stream or an event) and of
        ``pageable_copies``, from or to memory that is not pinned.
    """
    busy = end = 0.0
    on_device = [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
    for span in sorted((event.time_range for event in on_device), key=lambda span: span.start):
        busy += max(0.0, span.end - max(end, span.start))  # streams overlap
        end = max(end, span.end)
    calls = [event.name for event in events if event.device_type == DeviceType.CPU]
    return dict(
        busy=busy / 1e6 / seconds,
        launches=sum(bool(LAUNCH.match(name)) for name in calls),
        waits=sum(bool(WAIT.match(name)) for name in calls),
        pageable_copies=sum('Pageable' in event.name for event in on_device))
