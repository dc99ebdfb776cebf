"""Networks put together from their parts, which leave nothing behind when they go."""

from __future__ import annotations

import keyword
import linecache
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.fx import graph_module
from torch.fx.graph import PythonCode

from graphsurgery.network.aliasing import is_harmless
from graphsurgery.network.copying import rebind
from graphsurgery.network.layers import either, hold
from graphsurgery.network.outputs.records import RecordTracer, needs_tracer
from graphsurgery.network.paths import owner_of, put

_ATTRIBUTES = ("_code", "_lineno_map", "_prologue_start")
"""What a GraphModule gets by `recompile`, besides the `forward` of its class."""


class Network(fx.GraphModule):
    """A GraphModule that writes its Python code when it is first run or looked at.

    To write and compile it takes as long as to type the graph, and what only goes into the next pass is never run.

    Its tensors are freed with the last reference to it. Those of a GraphModule wait for the garbage collector, as its
    graph refers back to it; and as a whole network is few objects, Python collects late, after dozens of networks.
    """

    @property
    def graph(self) -> fx.Graph:
        """The graph; a new one replaces the code, but a changed one needs `recompile`, as in every GraphModule."""
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        self._graph = graph
        if type(graph) is fx.Graph:
            graph.__class__ = Nodes
        graph.owning_module = self
        for name in _ATTRIBUTES:
            self.__dict__.pop(name, None)
        # Every GraphModule has a class of its own.
        type(self).forward = _Forward(self)  # type: ignore[assignment]

    def recompile(self) -> PythonCode:
        """Write and compile the code; its source is forgotten with it."""
        written = self._written()
        code = type(self).forward.__code__
        weakref.finalize(code, _forget, code.co_filename).atexit = False
        return written

    def _written(self) -> PythonCode:
        usual = self._graph._codegen
        if type(usual) is not fx.graph.CodeGen or not _has_keywords(self._graph):
            return super().recompile()
        self._graph.set_codegen(_Spelling())
        try:
            return super().recompile()
        finally:
            self._graph.set_codegen(usual)

    def __getattr__(self, name: str) -> Any:
        if name in _ATTRIBUTES:
            self.recompile()
            return self.__dict__[name]
        return super().__getattr__(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        copied: fx.GraphModule = super().__deepcopy__(memo)
        rebind(copied, memo)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        self.recompile()
        function, state = super().__reduce__()
        if needs_tracer(self._graph):
            state[0]["_tracer_cls"] = RecordTracer  # it is traced anew when it is restored
        # What fx restores is a GraphModule, whose code cannot spell a keyword.
        return (_restored if _has_keywords(self._graph) else function), state


class Nodes(fx.Graph):
    """A graph that does not keep the network alive that it belongs to."""

    def create_node(
        self, op: str, target: Any, args: Any = None, kwargs: Any = None, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        """As fx does, which looks through the arguments of each call for symbolic numbers; there are none here."""
        node = super().create_node(op, target, None, None, name, type_expr)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    @property
    def owning_module(self) -> fx.GraphModule | None:
        owner = self._owning_module
        return owner() if isinstance(owner, weakref.ref) else owner

    @owning_module.setter
    def owning_module(self, module: fx.GraphModule | None) -> None:
        self._owning_module: Any = None if module is None else weakref.ref(module)


@contextmanager
def passing_sources() -> Iterator[None]:
    """Forget the sources of all code that is generated in the meantime by others than networks: by an exporter."""
    before = set(graph_module._loader.eval_cache)
    try:
        yield
    finally:
        for key in set(graph_module._loader.eval_cache) - before:
            _forget(key)


def _forget(key: str) -> None:
    """Drop the source of code that is gone: fx and `linecache` would keep it, and all that it names, for ever."""
    if key.startswith("<eval_with_key>"):  # other names stand for all code of one text
        graph_module._loader.eval_cache.pop(key, None)
        linecache.cache.pop(key, None)


class _Spelling(fx.graph.CodeGen):
    """Code in which a module may be called `class`, as in a ModuleDict."""

    def _gen_python_code(self, nodes: Any, root_module: str, *args: Any, **kwargs: Any) -> Any:
        code = super()._gen_python_code(nodes, root_module, *args, **kwargs)
        for path in {str(node.target) for node in nodes if _has_keyword(node)}:
            plain, spelt = _spelt(root_module, path, lambda _: False), _spelt(root_module, path, keyword.iskeyword)
            code.src = re.sub(re.escape(plain) + r"(?!\w)", spelt.replace("\\", r"\\"), code.src)
        return code


def _restored(body: dict[str, Any], imports: str) -> fx.GraphModule:
    """As `fx.graph_module.reduce_graph_module`, but a `Network`."""
    forward = graph_module._forward_from_src(imports + body["_code"], {})
    return graph_module._deserialize_graph_module(forward, body, graph_module_cls=Network)  # type: ignore[return-value]


def without_keywords(module: fx.GraphModule) -> None:
    """Give every module and tensor whose name is a keyword another name, in place: `class` becomes `class_`.

    Tools that write code of their own, such as the ONNX exporter, cannot spell it.
    """
    if not _has_keywords(module.graph):
        return
    renamed = {"": ""}
    for path, part in list(module.named_modules(remove_duplicate=False)):
        every: tuple[dict[str, Any], ...] = (part._modules, part._parameters, part._buffers)
        taken = {name for slots in every for name in slots}
        for slots in every:
            entries = [(_free(name, taken), name, value) for name, value in slots.items()]
            slots.clear()
            slots.update({new: value for new, _, value in entries})
            for new, name, _ in entries:
                around = f"{renamed[path]}." if path else ""
                renamed[f"{path}.{name}" if path else name] = around + new
    for node in module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = renamed.get(str(node.target), node.target)
    module.recompile()


def _free(name: str, taken: set[str]) -> str:
    """The name itself, or one with a line behind it that nothing has."""
    if not keyword.iskeyword(name):
        return name
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _has_keywords(graph: fx.Graph) -> bool:
    return any(map(_has_keyword, graph.nodes))


def _has_keyword(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr") and any(map(keyword.iskeyword, str(node.target).split(".")))


def _spelt(root: str, path: str, quoted: Callable[[str], bool]) -> str:
    """How code asks for what lies at a path."""
    for part in path.split("."):
        root = f'getattr({root}, "{part}")' if quoted(part) or not part.isidentifier() else f"{root}.{part}"
    return root


class _Forward:
    """A `forward` that is written when it is asked for, of the network or of its class."""

    def __init__(self, network: Network) -> None:
        self.network = weakref.ref(network)

    def __get__(self, instance: Network | None, owner: type) -> Any:
        network = self.network()
        assert network is not None
        network.recompile()
        asked: Any = owner if instance is None else instance
        return asked.forward


def assembled(parts: Mapping[str, Any], graph: fx.Graph, class_name: str) -> Network:
    """A network that has these modules, parameters, buffers and constants at their paths.

    As `fx.GraphModule(parts, graph)`, which walks every path anew.
    """
    network = Network(nn.Module(), fx.Graph(), class_name)
    owners: dict[str, nn.Module] = {"": network}
    # What is nested less deeply comes first, as a module may have others below its path.
    for path in sorted(parts, key=lambda path: path.count(".")):
        prefix, _, name = path.rpartition(".")
        owner, part = owner_of(owners, prefix), parts[path]
        put(owner, name, part)
        if isinstance(part, nn.Module):
            owners[path] = part
    network.graph = graph
    return network


def as_evaluated(module: fx.GraphModule) -> fx.GraphModule:
    """The network as it evaluates, without what only training needs and without checks; it shares the tensors."""
    if not any(node.target in (either, hold) for node in module.graph.nodes if node.op == "call_function"):
        return module
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.target is hold:
            continue
        if node.target is either:
            copies[node] = fx.map_arg(node.args[2], copies.__getitem__)
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = dict(node.meta)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output") and is_harmless(module, node):
            graph.erase_node(node)
    return Network(module, graph, class_name=type(module).__name__)
