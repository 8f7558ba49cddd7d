"""Taking a config apart: what is translated is taken out, so that what is left was not translated."""

from collections.abc import Iterator


def unshared(value):
    """Copy a config so that no two places of it are the same object: they are taken apart one by one."""
    if isinstance(value, dict):
        return {key: unshared(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(unshared(item) for item in value)
    return value


def leaves(value, path: str) -> Iterator[tuple[str, object]]:
    """Yield (path, value) of everything that is left in a taken-apart config."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f'{path}.{key}' if path else str(key))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list)) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f'{path}[{index}]')
    else:
        yield path, value


def shortened(value) -> str:
    """The value as source, cut after 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def take(old: dict, *names: str) -> dict:
    """Take the arguments that keep their name and value."""
    return {name: old.pop(name) for name in names if name in old}


def take_if(old: dict, name: str, *known) -> bool:
    """Take an argument if its value is one of those known to need no translation; otherwise it is left over."""
    if name in old and old[name] in known:
        del old[name]
        return True
    return name not in old


def holds(config, value: dict | list | tuple) -> bool:
    """Whether a value is somewhere in a config: itself, as a part of a dict, or item by item of a list."""
    def matches(node) -> bool:
        if isinstance(value, dict) and isinstance(node, dict):
            return value.items() <= node.items()
        return value == node

    nodes = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else ()
    if matches(config) or any(holds(node, value) for node in nodes):
        return True
    return isinstance(value, list) and all(isinstance(item, dict) and holds(config, item) for item in value)
