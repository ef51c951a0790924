// Addresses and sizes from Python to functions.h; the caller has checked them.
#include "bindings.h"

#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../../addresses.h"
#include "functions.h"
#include "runtime.h"

namespace py = pybind11;

namespace cplearn::cuda {
namespace {

// (address, dtype, row stride, column stride)
using View = std::tuple<Address, int, int64_t, int64_t>;

Batch batch_of(const Dictionary& d, const std::vector<View>& views, int64_t rows) {
  Batch batch{};
  batch.num_views = int(views.size()), batch.per_view = int32_t(rows);
  batch.num_features = int32_t(d.codes.num_features);
  for (size_t i = 0; i < views.size(); ++i) {
    const auto& [address, dtype, row_stride, column_stride] = views[i];
    batch.views[i] = {at<const void>(address), Dtype(dtype), row_stride, column_stride};
  }
  return batch;
}

// run(call) without the interpreter's lock; the bytes it counted.
template <class Run>
size_t called(const Device& device, Address memory, const Run& run) {
  const py::gil_scoped_release release;
  Call call(device, at<void>(memory));
  if (!call.counting()) use_device(device.index);
  run(call);
  return call.bytes();
}

Dictionary make_dictionary(int kind, int64_t num_features, int64_t num_codes, uint64_t seed, int log2_block,
                           Address positions, Address coordinate_at, Address packed, int64_t first_code,
                           std::optional<int64_t> total_codes) {
  const Codes codes = codes_at(kind, num_features, num_codes, seed, log2_block, positions, packed, first_code,
                               total_codes.value_or(num_codes));
  return {codes, {at<const int32_t>(positions), at<const int32_t>(coordinate_at)}};
}

// (best, others, code)
using RowSumsAt = std::tuple<Address, Address, Address>;

RowSums row_sums_at(const RowSumsAt& addresses) {
  const auto& [best, others, code] = addresses;
  return {at<double>(best), at<double>(others), at<int32_t>(code)};
}

// (RowScalar, rows)
RowScalars row_scalars_at(Address address, int64_t rows) {
  double* const first = at<double>(address);
  return {first + kCrossTerm * rows, first + kMassOfOthers * rows, first + kWeightsOfOthers * rows,
          first + kBestPriorWeight * rows, first + kBestPartnerU * rows};
}

}  // namespace

void bind(py::module_& m) {
  using D = const Dictionary&;
  using Views = const std::vector<View>&;
  py::class_<Device>(m, "Device", py::module_local())
      .def(py::init([](int index, Address stream, int processors, int shared_limit, int64_t span_codes,
                       int64_t span_products) {
             return Device{index, at<void>(stream), processors, shared_limit, span_codes, span_products};
           }),
           py::arg("index"), py::arg("stream"), py::arg("processors"), py::arg("shared_limit"), py::arg("span_codes"),
           py::arg("span_products"));
  // Python attaches the tensors that it points into, so that all live equally long. Local to the module: the emulated
  // kernels are loaded beside the real ones.
  py::class_<Dictionary>(m, "Dictionary", py::dynamic_attr(), py::module_local())
      .def(py::init(&make_dictionary), py::arg("kind"), py::arg("num_features"), py::arg("num_codes"), py::arg("seed"),
           py::arg("log2_block"), py::arg("positions"), py::arg("coordinate_at"), py::arg("packed"),
           py::arg("first_code") = 0, py::arg("total_codes") = py::none());
  m.def("architectures", &architectures, "the architectures that machine code was built for");
  m.def("device_count", [] {
    std::string reason;
    const int count = device_count(reason);
    return std::pair(count, reason);
  }, "(devices, why there are none)");

  m.def("cplearn_loss", [](const Device& device, Address memory, D d, Views views, int64_t rows, double temperature,
                           double beta, int prior, Address prior_probs, Address out, Address grad_1, Address grad_2) {
    return called(device, memory, [&](Call& call) {
      const LossSettings settings{temperature, beta, Prior(prior), at<const float>(prior_probs)};
      cplearn_loss(call, d, batch_of(d, views, rows), settings, at<float>(out), at<float>(grad_1), at<float>(grad_2));
    });
  });
  // (device, memory, dictionary, views, rows, temperature, out)
  const auto of_rows = [&](const char* name, auto function) {
    m.def(name, [function](const Device& device, Address memory, D d, Views views, int64_t rows, double temperature,
                           Address out) {
      return called(device, memory, [&](Call& call) {
        function(call, d, batch_of(d, views, rows), temperature, at<float>(out));
      });
    });
  };
  of_rows("projector_logsumexp", &projector_logsumexp);
  of_rows("projector_softmax", &projector_softmax);
  of_rows("expected_code", &expected_code);
  of_rows("mean_assignment", &mean_assignment);
  // (device, memory, dictionary, views, rows, upstream, temperature, grad)
  const auto backward_of_rows = [&](const char* name, auto function) {
    m.def(name, [function](const Device& device, Address memory, D d, Views views, int64_t rows, Address upstream,
                           double temperature, Address grad) {
      return called(device, memory, [&](Call& call) {
        function(call, d, batch_of(d, views, rows), at<const float>(upstream), temperature, at<float>(grad));
      });
    });
  };
  backward_of_rows("expected_code_backward", &expected_code_backward);
  backward_of_rows("mean_assignment_backward", &mean_assignment_backward);
  m.def("projector_softmax_backward", [](const Device& device, Address memory, D d, Views views, int64_t rows,
                                         Address upstream, Address p, double temperature, Address grad) {
    return called(device, memory, [&](Call& call) {
      projector_softmax_backward(call, d, batch_of(d, views, rows), at<const float>(upstream), at<const float>(p),
                                 temperature, at<float>(grad));
    });
  });
  m.def("best_codes", [](const Device& device, Address memory, D d, Views views, int64_t rows, Address scores,
                         Address codes) {
    return called(device, memory, [&](Call& call) {
      best_codes(call, d, batch_of(d, views, rows), at<float>(scores), at<int64_t>(codes));
    });
  });
  m.def("scores", [](const Device& device, Address memory, D d, Views views, int64_t rows, int64_t first, int64_t count,
                     Address out) {
    return called(device, memory, [&](Call& call) {
      scores(call, d, batch_of(d, views, rows), first, count, at<float>(out));
    });
  });

  m.attr("ROW_SCALARS") = int(kRowScalars);
  m.def("row_sums", [](const Device& device, Address memory, D d, Views views, int64_t rows, double temperature,
                       const RowSumsAt& out) {
    return called(device, memory, [&](Call& call) {
      row_sums(call, d, batch_of(d, views, rows), temperature, row_sums_at(out));
    });
  });
  m.def("mean_assignment_of_range", [](const Device& device, Address memory, D d, Views views, int64_t rows,
                                       double temperature, const RowSumsAt& known, Address out) {
    return called(device, memory, [&](Call& call) {
      mean_assignment_of_range(call, d, batch_of(d, views, rows), temperature, row_sums_at(known), at<float>(out));
    });
  });
  m.def("code_sums", [](const Device& device, Address memory, D d, Views views, int64_t rows, double temperature,
                        double beta, int prior, Address prior_probs, const RowSumsAt& known, Address scalars,
                        Address prior_sum, Address sums) {
    return called(device, memory, [&](Call& call) {
      const LossSettings settings{temperature, beta, Prior(prior), at<const float>(prior_probs)};
      code_sums(call, d, batch_of(d, views, rows), settings, row_sums_at(known), row_scalars_at(scalars, 2 * rows),
                at<double>(prior_sum), at<double>(sums));
    });
  });
  m.def("gradients", [](const Device& device, Address memory, D d, Views views, int64_t rows, double temperature,
                        double beta, const RowSumsAt& known, Address scalars, Address sums, Address grad) {
    return called(device, memory, [&](Call& call) {
      gradients(call, d, batch_of(d, views, rows), temperature, beta, row_sums_at(known),
                row_scalars_at(scalars, 2 * rows), at<const double>(sums), at<float>(grad));
    });
  });
}

}  // namespace cplearn::cuda
