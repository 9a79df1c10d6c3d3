#!/usr/bin/env python3
"""Runs kernels that `ihip kernels export NAME --test-vectors -o FOLDER` wrote, on a GPU, without Rust.

    python3 load_kernels.py FOLDER            checks the files, runs the test vectors, compares
    python3 load_kernels.py FOLDER --check    checks the files only: needs no GPU

Nothing but Python and the NVIDIA driver is needed: the driver's functions are called through ctypes. Exit codes: 0 all
is equal, 1 something differs or fails, 2 a file is not what the manifest says, 3 there is no GPU.
"""

import array
import ctypes
import hashlib
import json
import pathlib
import re
import sys

FORM = 1  # of the manifest
SHARED_DEFAULT = 48 * 1024  # bytes of dynamic shared memory that a launch may use without being allowed to
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute


class Refused(Exception):
    """A file that is not what the manifest says."""


# ---- Files


def read(folder, entry):
    """The bytes of a file, whose hash must be the manifest's."""
    data = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise Refused(f"{entry['file']}: its SHA-256 is not the one in the manifest")
    return data


def signature(text, entry):
    """Types and names of an entry's arguments, as its text declares them."""
    aliases = dict(re.findall(r"using (\w+) = (\w+);", text))
    found = re.search(rf"^KERNEL\([^)]*\) {re.escape(entry)}\(([^)]*)\)", text, re.MULTILINE)
    if not found:
        raise Refused(f"{entry}: its text has no such entry")
    arguments = []
    for declared in found.group(1).split(","):
        words = declared.replace("__restrict__", "").split()
        kind = re.sub(r"\w+", lambda word: aliases.get(word.group(), word.group()), " ".join(words[:-1]))
        arguments.append((kind, words[-1]))
    return arguments


def check(folder):
    """Reads the manifest and everything it names; returns it with the test vectors in the place of their files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if manifest["form"] != FORM:
        raise Refused(f"the manifest has form {manifest['form']}, and this program reads {FORM}")
    cubins = 0
    for kernel in manifest["kernels"]:
        text = read(folder, kernel["text"]).decode()
        stated = [(argument["type"], argument["name"]) for argument in kernel["arguments"]]
        if signature(text, kernel["entry"]) != stated:
            raise Refused(f"{kernel['entry']}: the text's arguments are not those of the manifest")
        for cubin in kernel["cubins"].values():
            if not read(folder, cubin).startswith(b"\x7fELF"):
                raise Refused(f"{cubin['file']} is no cubin")
            cubins += 1
    takes = {kernel["entry"]: len(kernel["arguments"]) for kernel in manifest["kernels"]}
    manifest["tests"] = [json.loads(read(folder, test)) for test in manifest["tests"]]
    for test in manifest["tests"]:
        for step in test["steps"]:
            for entry in step["content"].values():
                read(folder, entry)
            for launch in step["launches"]:
                if len(launch["arguments"]) != takes[launch["kernel"]]:
                    raise Refused(f"{launch['kernel']} is launched with other arguments than it takes")
    print(f"{manifest['pipeline']} for {manifest['model']}: {len(takes)} kernels, {cubins} cubins, "
          f"{len(manifest['tests'])} test vectors; hashes and arguments are right")
    return manifest


# ---- The driver


class Driver:
    """The functions of libcuda that loading and launching take."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.capability = tuple(self.attribute(device, number)
                                for number in (COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR))

    def call(self, name, *arguments):
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            words = ctypes.c_char_p()
            self.library.cuGetErrorString(code, ctypes.byref(words))
            raise OSError(f"{name} failed: {words.value.decode() if words.value else code}")

    def attribute(self, device, number):
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
        return value.value

    def allocate(self, size):
        address = ctypes.c_uint64()
        # An empty allocation is an error to the driver; a buffer that nothing is read from still needs an address.
        size = max(size, 1)
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        # Whoever reads what nobody has written shall find NaN rather than a convenient zero.
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(0xFF), ctypes.c_size_t(size))
        return address

    def zero(self, address, size):
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), ctypes.c_size_t(size))

    def write(self, address, data):
        self.call("cuMemcpyHtoD_v2", address, ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def read(self, address, size):
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, address, ctypes.c_size_t(size))
        return data.raw

    def load(self, folder, kernel):
        """The entry of a kernel, from the cubin for this GPU: its own, or that of a lesser minor version."""
        major, minor = self.capability
        names = [f"sm_{major}{minor}a"] + [f"sm_{major}{lesser}" for lesser in range(minor, -1, -1)]
        name = next((name for name in names if name in kernel["cubins"]), None)
        if name is None:
            raise OSError(f"{kernel['entry']} was exported for {', '.join(kernel['cubins'])}, and this GPU is "
                          f"sm_{major}{minor}: export it with --arch sm_{major}{minor}")
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(read(folder, kernel["cubins"][name])))
        self.call("cuModuleGetFunction", ctypes.byref(function), module, kernel["entry"].encode())
        if kernel["dynamic_shared_bytes"] > SHARED_DEFAULT:
            self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel["dynamic_shared_bytes"])
        return function

    def launch(self, kernel, function, launch, buffers):
        values = [buffers[value] if isinstance(value, str) else ctypes.c_int(value) for value in launch["arguments"]]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self.call("cuLaunchKernel", function, *launch["grid"], *kernel["block"], kernel["dynamic_shared_bytes"],
                  None, pointers, None)


# ---- Test vectors


def numbers(kind, data):
    return array.array(kind, data)


def compare_lists(driver, folder, lists, buffers):
    """How many lists there are, and how many of them are the reference's."""
    expected_counts = numbers("i", read(folder, lists["expected_counts"]))
    expected = numbers("i", read(folder, lists["expected_blocks"]))
    counts = numbers("i", driver.read(buffers[lists["counts"]], 4 * len(expected_counts)))
    blocks = numbers("i", driver.read(buffers[lists["blocks"]], 4 * len(expected)))
    width = lists["width"]
    equal = sum(
        count == got and expected[row * width:row * width + count] == blocks[row * width:row * width + count]
        for row, (count, got) in enumerate(zip(expected_counts, counts)))
    return equal, len(expected_counts)


def run(driver, folder, manifest, test):
    """Runs the steps of a test vector; whether all is equal."""
    kernels = {kernel["entry"]: kernel for kernel in manifest["kernels"]}
    functions, buffers = {}, {}
    for name, buffer in test["buffers"].items():
        buffers[name] = driver.allocate(buffer["bytes"])
        if buffer["zeroed"]:
            driver.zero(buffers[name], buffer["bytes"])
    for name, entry in test["content"].items():
        driver.write(buffers[name], read(folder, entry))
    good = True
    for step in test["steps"]:
        for name, entry in step["content"].items():
            driver.write(buffers[name], read(folder, entry))
        for launch in step["launches"]:
            kernel = kernels[launch["kernel"]]
            if launch["kernel"] not in functions:
                functions[launch["kernel"]] = driver.load(folder, kernel)
            driver.launch(kernel, functions[launch["kernel"]], launch, buffers)
        driver.call("cuCtxSynchronize")
        said = [f"layer {test['layer']}, {step['name']}: {len(step['launches'])} launches"]
        if step["lists"]:
            equal, all_lists = compare_lists(driver, folder, step["lists"], buffers)
            good &= equal == all_lists
            said.append(f"{equal} of {all_lists} block lists are the reference's")
        if step["output"]:
            expected = numbers("f", read(folder, step["output"]["content"]))
            got = numbers("f", driver.read(buffers[step["output"]["buffer"]], 4 * len(expected)))
            # NaN compares as false, so that it counts as far off.
            off = sum(not abs(a - b) <= step["output"]["tolerance"] for a, b in zip(expected, got))
            good &= off == 0
            largest = max(abs(a - b) for a, b in zip(expected, got))
            said.append(f"{len(expected) - off} of {len(expected)} outputs are within {step['output']['tolerance']:g}"
                        f" (largest difference {largest:.1e})")
        print(", ".join(said))
    return good


def main(arguments):
    if not arguments or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 2
    folder = pathlib.Path(arguments[0])
    try:
        manifest = check(folder)
    except (Refused, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if "--check" in arguments[1:]:
        return 0
    try:
        driver = Driver()
    except OSError as error:
        print(f"error: from here on a GPU and its driver are needed: {error}", file=sys.stderr)
        return 3
    try:
        equal = [run(driver, folder, manifest, test) for test in manifest["tests"]]
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("all is equal" if all(equal) else "something differs")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
