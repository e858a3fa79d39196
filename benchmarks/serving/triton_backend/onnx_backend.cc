// A Triton backend that runs one ONNX model with ONNX Runtime's C API, one thread per instance.
// It joins the requests that Triton's dynamic batcher hands over and splits the answers again.
#include <cstring>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"
#include "triton/core/tritonbackend.h"

namespace {

const OrtApi* ort = nullptr;

struct Port {
  std::string name;
  ONNXTensorElementDataType type;
};

struct Model {
  OrtEnv* env = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* memory = nullptr;
  std::vector<Port> inputs, outputs;
};

size_t width(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return 8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16: return 2;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL: return 1;
    default: return 4;
  }
}

TRITONSERVER_DataType triton_type(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64: return TRITONSERVER_TYPE_INT64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return TRITONSERVER_TYPE_FP64;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32: return TRITONSERVER_TYPE_INT32;
    default: return TRITONSERVER_TYPE_FP32;
  }
}

TRITONSERVER_Error* failed(const std::string& what) {
  return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, what.c_str());
}

TRITONSERVER_Error* check(OrtStatus* status) {
  if (status == nullptr) return nullptr;
  TRITONSERVER_Error* error = failed(ort->GetErrorMessage(status));
  ort->ReleaseStatus(status);
  return error;
}

#define TRY(call)                                            \
  do {                                                       \
    if (TRITONSERVER_Error* error_ = (call)) return error_;  \
  } while (false)

TRITONSERVER_Error* read_ports(Model* model, bool inputs) {
  OrtAllocator* allocator;
  TRY(check(ort->GetAllocatorWithDefaultOptions(&allocator)));
  size_t count;
  TRY(check(inputs ? ort->SessionGetInputCount(model->session, &count)
                   : ort->SessionGetOutputCount(model->session, &count)));
  for (size_t i = 0; i < count; ++i) {
    char* name;
    OrtTypeInfo* info;
    TRY(check(inputs ? ort->SessionGetInputName(model->session, i, allocator, &name)
                     : ort->SessionGetOutputName(model->session, i, allocator, &name)));
    TRY(check(inputs ? ort->SessionGetInputTypeInfo(model->session, i, &info)
                     : ort->SessionGetOutputTypeInfo(model->session, i, &info)));
    const OrtTensorTypeAndShapeInfo* tensor;
    TRY(check(ort->CastTypeInfoToTensorInfo(info, &tensor)));
    Port port{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED};
    TRY(check(ort->GetTensorElementType(tensor, &port.type)));
    ort->ReleaseTypeInfo(info);
    (inputs ? model->inputs : model->outputs).push_back(port);
  }
  return nullptr;
}

struct Part {
  std::vector<char> bytes;
  std::vector<int64_t> shape;
};

// Joins one input of all requests along the first dimension; `rows` gets each request's rows.
TRITONSERVER_Error* gather(TRITONBACKEND_Request** requests, uint32_t count, const Port& port,
                           Part* part, std::vector<int64_t>* rows) {
  rows->clear();
  for (uint32_t r = 0; r < count; ++r) {
    TRITONBACKEND_Input* input;
    TRY(TRITONBACKEND_RequestInput(requests[r], port.name.c_str(), &input));
    const int64_t* shape;
    uint32_t rank, buffers;
    TRY(TRITONBACKEND_InputProperties(input, nullptr, nullptr, &shape, &rank, nullptr, &buffers));
    if (r == 0) part->shape.assign(shape, shape + rank);
    else part->shape[0] += shape[0];
    rows->push_back(shape[0]);
    for (uint32_t b = 0; b < buffers; ++b) {
      const void* data;
      uint64_t size;
      TRITONSERVER_MemoryType kind = TRITONSERVER_MEMORY_CPU;
      int64_t kind_id = 0;
      TRY(TRITONBACKEND_InputBuffer(input, b, &data, &size, &kind, &kind_id));
      const char* first = static_cast<const char*>(data);
      part->bytes.insert(part->bytes.end(), first, first + size);
    }
  }
  return nullptr;
}

TRITONSERVER_Error* scatter(OrtValue* value, const Port& port, const std::vector<int64_t>& rows,
                            std::vector<TRITONBACKEND_Response*>* responses) {
  OrtTensorTypeAndShapeInfo* info;
  TRY(check(ort->GetTensorTypeAndShape(value, &info)));
  size_t rank;
  TRY(check(ort->GetDimensionsCount(info, &rank)));
  std::vector<int64_t> shape(rank);
  TRY(check(ort->GetDimensions(info, shape.data(), rank)));
  ort->ReleaseTensorTypeAndShapeInfo(info);
  size_t row = width(port.type);
  for (size_t d = 1; d < rank; ++d) row *= shape[d];
  void* data;
  TRY(check(ort->GetTensorMutableData(value, &data)));
  const char* from = static_cast<const char*>(data);
  for (size_t r = 0; r < rows.size(); ++r) {
    shape[0] = rows[r];
    TRITONBACKEND_Output* output;
    TRY(TRITONBACKEND_ResponseOutput((*responses)[r], &output, port.name.c_str(),
                                     triton_type(port.type), shape.data(), rank));
    void* to;
    TRITONSERVER_MemoryType kind = TRITONSERVER_MEMORY_CPU;
    int64_t kind_id = 0;
    TRY(TRITONBACKEND_OutputBuffer(output, &to, row * rows[r], &kind, &kind_id));
    std::memcpy(to, from, row * rows[r]);
    from += row * rows[r];
  }
  return nullptr;
}

TRITONSERVER_Error* run(Model* model, TRITONBACKEND_Request** requests, uint32_t count,
                        std::vector<TRITONBACKEND_Response*>* responses) {
  std::vector<Part> parts(model->inputs.size());
  std::vector<int64_t> rows;
  std::vector<OrtValue*> feeds(parts.size(), nullptr), values(model->outputs.size(), nullptr);
  std::vector<const char*> in, out;
  for (size_t i = 0; i < parts.size(); ++i) {
    TRY(gather(requests, count, model->inputs[i], &parts[i], &rows));
    TRY(check(ort->CreateTensorWithDataAsOrtValue(
        model->memory, parts[i].bytes.data(), parts[i].bytes.size(), parts[i].shape.data(),
        parts[i].shape.size(), model->inputs[i].type, &feeds[i])));
    in.push_back(model->inputs[i].name.c_str());
  }
  for (const Port& port : model->outputs) out.push_back(port.name.c_str());
  TRY(check(ort->Run(model->session, nullptr, in.data(), feeds.data(), feeds.size(), out.data(),
                     out.size(), values.data())));
  for (size_t o = 0; o < values.size(); ++o)
    TRY(scatter(values[o], model->outputs[o], rows, responses));
  for (OrtValue* value : feeds) ort->ReleaseValue(value);
  for (OrtValue* value : values) ort->ReleaseValue(value);
  return nullptr;
}

}  // namespace

extern "C" {

TRITONSERVER_Error* TRITONBACKEND_Initialize(TRITONBACKEND_Backend*) {
  ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  TRITONBACKEND_Model* owner;
  TRY(TRITONBACKEND_ModelInstanceModel(instance, &owner));
  TRITONBACKEND_ArtifactType kind;
  const char* folder;
  TRY(TRITONBACKEND_ModelRepository(owner, &kind, &folder));
  uint64_t version;
  TRY(TRITONBACKEND_ModelVersion(owner, &version));
  std::string path = std::string(folder) + "/" + std::to_string(version) + "/model.onnx";
  auto* model = new Model;
  OrtSessionOptions* options;
  TRY(check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "benchmark", &model->env)));
  TRY(check(ort->CreateSessionOptions(&options)));
  TRY(check(ort->SetIntraOpNumThreads(options, 1)));
  TRY(check(ort->CreateSession(model->env, path.c_str(), options, &model->session)));
  TRY(check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &model->memory)));
  TRY(read_ports(model, true));
  TRY(read_ports(model, false));
  return TRITONBACKEND_ModelInstanceSetState(instance, model);
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* instance) {
  void* state;
  TRY(TRITONBACKEND_ModelInstanceState(instance, &state));
  auto* model = static_cast<Model*>(state);
  ort->ReleaseSession(model->session);
  ort->ReleaseEnv(model->env);
  delete model;
  return nullptr;
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                       TRITONBACKEND_Request** requests,
                                                       const uint32_t count) {
  void* state;
  TRY(TRITONBACKEND_ModelInstanceState(instance, &state));
  std::vector<TRITONBACKEND_Response*> responses(count);
  for (uint32_t r = 0; r < count; ++r) TRY(TRITONBACKEND_ResponseNew(&responses[r], requests[r]));
  TRITONSERVER_Error* error = run(static_cast<Model*>(state), requests, count, &responses);
  for (uint32_t r = 0; r < count; ++r) {
    TRITONBACKEND_ResponseSend(responses[r], TRITONSERVER_RESPONSE_COMPLETE_FINAL, error);
    TRITONBACKEND_RequestRelease(requests[r], TRITONSERVER_REQUEST_RELEASE_ALL);
  }
  if (error != nullptr) TRITONSERVER_ErrorDelete(error);
  return nullptr;
}
}
