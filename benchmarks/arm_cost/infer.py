"""Runs on the emulated core: one engine, one model, some inferences.

python infer.py ENGINE MODEL x.npy y.npy RUNS
"""

import sys

import numpy as np


def onnxruntime(path, x):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})[0]


def ncnn(path, x):
    import ncnn as engine

    net = engine.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.load_param(path)
    net.load_model(path[: -len("param")] + "bin")
    given = engine.Mat(x[0])

    def run():
        extractor = net.create_extractor()
        extractor.input("in0", given)
        return np.array(extractor.extract("out0")[1])

    return run


def main():
    engine, path, source, target, runs = sys.argv[1:]
    infer = {"onnxruntime": onnxruntime, "ncnn": ncnn}[engine](path, np.load(source))
    for _ in range(int(runs)):
        result = infer()
    np.save(target, result.reshape(1, -1))


if __name__ == "__main__":
    main()
