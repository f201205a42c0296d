"""A plain network as Python text that needs torch and nothing else: its layers by name, and what is done with them."""

import keyword
import re
from typing import NamedTuple

from torch import Tensor, nn

from bayesarch.errors import ConfigError
from bayesarch.nets.tracing import trace

__all__ = ["Source", "source_of"]


class Source(NamedTuple):
    """A class as text.

    Attributes:
        text: source of one `nn.Module` class.
        tensors: its state, by the names it has there.
    """

    text: str
    tensors: dict[str, Tensor]


def source_of(net: nn.Module, name: str) -> Source:
    """Return a network in eval mode as the source of a class called `name`.

    Raises:
        ConfigError: if its code cannot be traced by torch.fx, or uses layers from outside torch.nn.
    """
    try:
        graph = trace(net)
    except Exception as error:  # whatever somebody's own code does with a proxy
        raise ConfigError(
            f"this network's code cannot be written out ({type(error).__name__}: {error}); export as onnx or program"
        ) from None
    made: list[str] = []
    tensors: dict[str, Tensor] = {}
    known: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        if target not in known:
            known[target] = _flat(target)
            if node.op == "call_module":
                layer = net.get_submodule(target)
                made.append(f"self.{known[target]} = nn.{_constructor(layer)}")
                tensors |= {f"{known[target]}.{key}": value for key, value in layer.state_dict().items()}
            else:
                parent, _, leaf = target.rpartition(".")
                value = getattr(net.get_submodule(parent), leaf)
                shape, dtype = tuple(value.shape), value.dtype
                made.append(f'self.register_buffer("{known[target]}", torch.empty({shape}, dtype={dtype}))')
                tensors[known[target]] = value.detach()
        node.target = known[target]
    body = graph.python_code("self").src
    code = body[body.index("def forward") :]
    code = re.sub(r"^(def forward\([^)]*\)).*?:$", r"\1:", code, count=1, flags=re.MULTILINE)
    code = re.sub(r";\s+\w+( = \w+)* = None", "", code)  # fx frees what is no longer needed; python does so by itself
    code = re.sub(r"torch\._C\._nn\.(\w+)", r"torch.nn.functional.\1", code)
    lines = [
        f"class {name}(nn.Module):",
        '    """A network that was found and trained by bayesarch."""',
        "",
        "    def __init__(self):",
        "        super().__init__()",
        *(f"        {line}" for line in made),
        "",
        *(f"    {line}".rstrip() for line in code.strip().splitlines()),
    ]
    return Source("\n".join(lines) + "\n", tensors)


def _flat(target: str) -> str:
    name = re.sub(r"\W", "_", target)
    return f"layer_{name}" if name[0].isdigit() or keyword.iskeyword(name) else name


def _constructor(layer: nn.Module) -> str:
    """Return what makes a layer, such as `Conv2d(1, 16, kernel_size=(3, 3))`.

    Raises:
        ConfigError: if it is not of torch.nn.
    """
    kind = type(layer).__name__
    if getattr(nn, kind, None) is not type(layer):
        raise ConfigError(f"a {kind} is no layer of torch.nn and cannot be written out; export as onnx or program")
    if isinstance(layer, nn.AvgPool2d):  # its text leaves out half of its arguments
        return (
            f"AvgPool2d({layer.kernel_size}, stride={layer.stride}, padding={layer.padding}, "
            f"ceil_mode={layer.ceil_mode}, count_include_pad={layer.count_include_pad})"
        )
    text = " ".join(repr(layer).split())
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # some versions write an argument that others do not take
        return re.sub(r", bias=\w+", "", text)
    return text
