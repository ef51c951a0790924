// The Python module cplearn_kernels._core: plain addresses and sizes, no torch header. Python owns the memory and has
// checked it; every kernel runs without the interpreter's lock.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "addresses.h"
#include "cpu/dispatch.h"
#ifndef CPK_WITHOUT_CUDA
#include "cuda/host/bindings.h"
#endif
#include "formulas.h"
#include "philox.h"

namespace py = pybind11;
using cplearn::Address;
using cplearn::at;
using cplearn::Batch;
using cplearn::Codes;
using cplearn::Run;

namespace {

// Whether a signal handler of the interpreter (Ctrl-C) has raised. The kernel then throws Interrupted, and the
// exception is waiting in the interpreter. Anywhere but in Python's main thread this is always false.
bool interrupted() {
  const py::gil_scoped_acquire lock;
  return PyErr_CheckSignals() != 0;
}

// Calls kernel(kernels of the target, run) without the interpreter's lock.
template <class Kernel>
void call(const std::string& target, int threads, const Kernel& kernel) {
  const cplearn::Kernels& kernels = cplearn::kernels_named(target);
  try {
    const py::gil_scoped_release release;
    kernel(kernels, Run{threads, &interrupted});
  } catch (const cplearn::Interrupted&) {
    throw py::error_already_set();
  }
}

std::tuple<double, double> cplearn_loss(const std::string& target, const Codes& codes, Address h1, Address h2,
                                        int64_t rows, double temperature, double beta, int prior, Address prior_probs,
                                        Address grad1, Address grad2, int threads) {
  const Batch views[2] = {{at<const float>(h1), rows}, {at<const float>(h2), rows}};
  const cplearn::LossRequest request{temperature, beta, cplearn::Prior(prior), at<const float>(prior_probs),
                                     grad1 != 0};
  cplearn::LossResult result{0, 0, {at<float>(grad1), at<float>(grad2)}};
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.cplearn_loss(codes, views, request, run, result);
  });
  return {result.invariance, result.prior};
}

// (target, codes, h, rows, temperature, out, threads) of projector_logsumexp, projector_softmax, expected_code and
// mean_assignment.
template <auto kFunction>
void of_rows(const std::string& target, const Codes& codes, Address h, int64_t rows, double temperature, Address out,
             int threads) {
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    (kernels.*kFunction)(codes, {at<const float>(h), rows}, temperature, run, at<float>(out));
  });
}

// (target, codes, h, rows, upstream, temperature, grad, threads) of expected_code_backward and
// mean_assignment_backward.
template <auto kFunction>
void backward_of_rows(const std::string& target, const Codes& codes, Address h, int64_t rows, Address upstream,
                      double temperature, Address grad, int threads) {
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    (kernels.*kFunction)(codes, {at<const float>(h), rows}, at<const float>(upstream), temperature, run,
                         at<float>(grad));
  });
}

void projector_softmax_backward(const std::string& target, const Codes& codes, int64_t rows, Address upstream,
                                Address p, double temperature, Address grad, int threads) {
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.projector_softmax_backward(codes, rows, at<const float>(upstream), at<const float>(p), temperature, run,
                                       at<float>(grad));
  });
}

void assign(const std::string& target, const Codes& codes, Address h, int64_t rows, int64_t top_k,
            Address scores, Address found, int threads) {
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.assign(codes, {at<const float>(h), rows}, top_k, run, at<float>(scores), at<int64_t>(found));
  });
}

int64_t shard_size(const std::string& target, const Codes& codes, int64_t rows) {
  int64_t doubles = 0;
  cplearn::kernels_named(target).shard_size(codes, rows, doubles);
  return doubles;
}

// Addresses of RowBests' arrays.
using BestsAddresses = std::array<Address, 3>;

cplearn::RowBests row_bests(const BestsAddresses& bests) {
  return {at<double>(bests[0]), at<double>(bests[1]), at<int64_t>(bests[2])};
}

void row_sums(const std::string& target, const Codes& codes, Address h, int64_t rows, double temperature,
              const BestsAddresses& out, int threads) {
  cplearn::RowBests bests = row_bests(out);
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.row_sums(codes, {at<const float>(h), rows}, temperature, run, bests);
  });
}

void shard_mean_assignment(const std::string& target, const Codes& codes, Address h, int64_t rows,
                           const BestsAddresses& bests, double temperature, Address out, int threads) {
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.shard_mean_assignment(codes, {at<const float>(h), rows}, row_bests(bests), temperature, run,
                                  at<float>(out));
  });
}

double shard_sums(const std::string& target, const Codes& codes, Address h1, Address h2, int64_t rows,
                  const BestsAddresses& bests, double temperature, double beta, int prior, Address prior_probs,
                  Address scalars, Address expected, Address pull, int threads) {
  const Batch views[2] = {{at<const float>(h1), rows}, {at<const float>(h2), rows}};
  const cplearn::LossRequest request{temperature, beta, cplearn::Prior(prior), at<const float>(prior_probs),
                                     expected != 0};
  cplearn::ShardSums sums{at<double>(scalars), at<double>(expected), at<double>(pull), 0};
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.shard_sums(codes, views, row_bests(bests), request, run, sums);
  });
  return sums.prior;
}

void shard_gradients(const std::string& target, const Codes& codes, int64_t rows, const BestsAddresses& bests,
                     double temperature, double beta, Address scalars, Address expected, Address pull, Address grad,
                     int threads) {
  const cplearn::ShardSums sums{at<double>(scalars), at<double>(expected), at<double>(pull), 0};
  call(target, threads, [&](const cplearn::Kernels& kernels, const Run& run) {
    kernels.shard_gradients(codes, rows, row_bests(bests), temperature, beta, sums, run, at<float>(grad));
  });
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
  // Python attaches the tensors that it points into, so that all live equally long.
  py::class_<Codes>(m, "Codes", py::dynamic_attr())
      .def(py::init(&cplearn::codes_at), py::arg("kind"), py::arg("num_features"), py::arg("num_codes"),
           py::arg("seed"), py::arg("log2_block"), py::arg("positions"), py::arg("packed"), py::arg("first_code"),
           py::arg("total_codes"));
  m.def("targets", &targets, "(name, lanes) of every instruction set that runs here, fastest first");
  m.def("philox", &philox, "Philox4x32-10 of (counter, key)");
  m.def("cplearn_loss", &cplearn_loss, "(invariance, prior); gradients to the two addresses unless they are 0");
  m.def("projector_logsumexp", &of_rows<&cplearn::Kernels::projector_logsumexp>);
  m.def("projector_softmax", &of_rows<&cplearn::Kernels::projector_softmax>);
  m.def("projector_softmax_backward", &projector_softmax_backward);
  m.def("expected_code", &of_rows<&cplearn::Kernels::expected_code>);
  m.def("expected_code_backward", &backward_of_rows<&cplearn::Kernels::expected_code_backward>);
  m.def("mean_assignment", &of_rows<&cplearn::Kernels::mean_assignment>);
  m.def("mean_assignment_backward", &backward_of_rows<&cplearn::Kernels::mean_assignment_backward>);
  m.def("assign", &assign);
  m.def("shard_size", &shard_size, "doubles at each of shard_sums' two last addresses");
  m.def("row_sums", &row_sums);
  m.def("shard_mean_assignment", &shard_mean_assignment);
  m.def("shard_sums", &shard_sums, "The prior's terms; sums of codes to the two last addresses unless they are 0");
  m.def("shard_gradients", &shard_gradients);
  m.attr("row_scalars") = int(cplearn::kRowScalars);
#ifdef CPK_WITHOUT_CUDA
  m.attr("without_cuda") = CPK_WITHOUT_CUDA;
#else
  py::module_ cuda = m.def_submodule("cuda", "The CUDA kernels; addresses on the device.");
  cplearn::cuda::bind(cuda);
#endif
}
