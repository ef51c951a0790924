// The Python module cplearn_kernels._core: plain addresses and sizes, no torch header. Python owns the memory and has
// checked it; every kernel runs without the interpreter's lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "philox.h"

namespace py = pybind11;
using cplearn::Batch;
using cplearn::HadamardCodes;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

HadamardCodes make_codes(int64_t num_features, int64_t num_codes, uint64_t seed, int log2_block, Address positions) {
  return {num_features, num_codes, seed, log2_block, at<const int32_t>(positions)};
}

std::tuple<double, double> cplearn_loss(const std::string& target, const HadamardCodes& codes, Address h1, Address h2,
                                        int64_t rows, double temperature, double beta, int prior, Address prior_probs,
                                        Address grad1, Address grad2, int threads) {
  const Batch views[2] = {{at<const float>(h1), rows}, {at<const float>(h2), rows}};
  const cplearn::LossRequest request{temperature, beta, cplearn::Prior(prior), at<const float>(prior_probs),
                                     grad1 != 0};
  cplearn::LossResult result{0, 0, {at<float>(grad1), at<float>(grad2)}};
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  py::gil_scoped_release release;
  kernels.cplearn_loss(codes, views, request, threads, result);
  return {result.invariance, result.prior};
}

void projector_logsumexp(const std::string& target, const HadamardCodes& codes, Address h, int64_t rows,
                         double temperature, Address out, int threads) {
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  py::gil_scoped_release release;
  kernels.projector_logsumexp(codes, {at<const float>(h), rows}, temperature, threads, at<float>(out));
}

void mean_assignment(const std::string& target, const HadamardCodes& codes, Address h, int64_t rows,
                     double temperature, Address out, int threads) {
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  py::gil_scoped_release release;
  kernels.mean_assignment(codes, {at<const float>(h), rows}, temperature, threads, at<float>(out));
}

void weighted_codes(const std::string& target, const HadamardCodes& codes, Address h, int64_t rows, double temperature,
                    Address code_weights, Address total, Address weighted, Address mean_weight, int threads) {
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  py::gil_scoped_release release;
  kernels.weighted_codes(codes, {at<const float>(h), rows}, temperature, at<const float>(code_weights), threads,
                         at<float>(total), at<float>(weighted), at<float>(mean_weight));
}

void assign(const std::string& target, const HadamardCodes& codes, Address h, int64_t rows, int64_t top_k,
            Address scores, Address found, int threads) {
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  py::gil_scoped_release release;
  kernels.assign(codes, {at<const float>(h), rows}, top_k, threads, at<float>(scores), at<int64_t>(found));
}

std::vector<std::tuple<std::string, int>> targets() {
  std::vector<std::tuple<std::string, int>> list;
  for (const cplearn::Kernels* kernels : cplearn::runnable_kernels()) list.emplace_back(kernels->name, kernels->lanes);
  return list;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const cplearn::PhiloxWords words =
      cplearn::philox4x32_10({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
  return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled core of cplearn_kernels; addresses and sizes only, checked by the caller.";
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
  // Python attaches the tensor that `positions` points into, so that both live equally long.
  py::class_<HadamardCodes>(m, "HadamardCodes", py::dynamic_attr())
      .def(py::init(&make_codes), py::arg("num_features"), py::arg("num_codes"), py::arg("seed"),
           py::arg("log2_block"), py::arg("positions"));
  m.def("targets", &targets, "(name, lanes) of every instruction set that runs here, fastest first");
  m.def("philox", &philox, "Philox4x32-10 of (counter, key)");
  m.def("cplearn_loss", &cplearn_loss, "(invariance, prior); gradients to the two addresses unless they are 0");
  m.def("projector_logsumexp", &projector_logsumexp);
  m.def("mean_assignment", &mean_assignment);
  m.def("weighted_codes", &weighted_codes);
  m.def("assign", &assign);
}
