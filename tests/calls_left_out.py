"""Names of torch that are no part of a network, with the reason: the one list of them.

A name that is neither here nor gets arguments is unknown, and fails the campaign: a newer torch has it, and somebody
has to say what it is.
"""

import fnmatch
from functools import cache

LEFT_OUT = {
    "settings, state and questions of the process": """
        *autocast* *deterministic* are_* *_num_threads *_num_interop_threads *rng_state seed initial_seed manual_seed
        get_default* set_default* get_device_module get_file_path *float32_matmul_precision set_flush_denormal
        set_printoptions *anomaly* *warn_always* is_grad_enabled is_inference_mode_enabled is_vulkan_available
        is_storage is_tensor compiled_with_cxx11_abi can_cast promote_types result_type typename init_num_threads
        prepare_multiprocessing_environment profiler_allow* thread_safe_generator cudnn_is_acceptable
    """,
    "files, compilers and control flow of torch itself": """
        load save compile fork wait import_ir* parse_* merge_type* unify_type* classproperty cond while_loop vmap
        boolean_dispatch handle_torch_function has_torch_function* assert_int_or_pair Optional sym_* from_file
        from_dlpack to_dlpack from_numpy frombuffer get_device
    """,
    "makes a tensor of no other one": """
        arange asarray as_tensor bartlett_window blackman_window hamming_window hann_window kaiser_window
        broadcast_shapes empty empty_permuted empty_strided eye fftfreq rfftfreq full linspace
        logspace ones zeros rand randint randn
        randperm range scalar_tensor tensor tril_indices triu_indices normal complex_ new empty_like new_empty
        new_empty_strided
    """,
    "sparse tensors": """
        sparse_* hspmm hsmm dsmm saddmm sspaddmm smm sspaddmm_ to_sparse* sparse_mask sparse_dim dense_dim coalesce
        is_coalesced indices values col_indices crow_indices ccol_indices row_indices to_dense resize_as_sparse
        sparse_resize* row_indices_copy *_indices_copy indices_copy values_copy to_mkldnn
    """,
    "quantised tensors": """
        quantize* quantized* q_* int_repr dequantize empty_quantized fake_quantize* fused_moving_avg_obs_fake_quant
        choose_qparams* fbgemm* qscheme grouped_mm scaled_grouped_mm scaled_mm
    """,
    "a compiler's or a backend's own form of another operator": """
        cudnn_* miopen_* mkldnn_* batch_norm_* native_* *_copy spmm feature_dropout
    """,
    "tensors with named axes": "align_* refine_names rename* names has_names",
    "nested tensors": "nested_* to_padded_tensor is_nested",
    "control of autograd, hooks and memory of one tensor": """
        backward register_hook register_post_accumulate_grad_hook retain_grad reinforce requires_grad set_data set
        data_ptr share_memory is_shared pin_memory is_pinned record_stream storage storage_offset storage_type
        untyped_storage unsafe_storage resize resize_as module_load stride_ as_subclass element_size
        is_set_to swap_tensors dim_order
    """,
    "gives Python values or arrays, no tensor": """
        numpy tolist item __array__ dim ndimension nelement numel size stride is_contiguous is_complex is_conj is_neg
        is_floating_point is_inference is_nonzero is_same_size is_signed is_distributed get_device has_names type
        equal allclose numpy_T ipu xpu mtia hpu cuda is_leaf data_ptr itemsize nbytes apply map map2 untyped_storage
        is_shared is_pinned
    """,
    "whole numbers and bits, which no layer gives": """
        bitwise_left_shift bitwise_right_shift gcd lcm bincount __lshift__ __rshift__ unravel_index
        tril_indices combinations cartesian_prod index const_data_ptr binomial
    """,
    "how many numbers it gives depends on their values": """
        nonzero nonzero_static argwhere unique unique_consecutive masked_select histc_ unique_dim
    """,
    "removed from torch, and raises": "cholesky eig lstsq qr matrix_rank solve symeig",
    "a container, a base class, or a layer that makes its weights at the first call": """
        Container Module ModuleDict ModuleList ParameterDict ParameterList Sequential RNNBase RNNCellBase DataParallel
        Lazy*
    """,
    "a loss that needs labels of whole numbers beside it, or layers of its own": """
        ctc_loss CTCLoss AdaptiveLogSoftmaxWithLoss TripletMarginWithDistanceLoss triplet_margin_with_distance_loss
    """,
    "a network, which is traced as its layers": """
        Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder
    """,
}


@cache
def _patterns() -> list[tuple[str, str]]:
    return [(pattern, reason) for reason, names in LEFT_OUT.items() for pattern in names.split()]


def why_left_out(home: str, name: str) -> str | None:
    """Why something is no part of a network; None where it may be."""
    if home == "torch.linalg":
        return None
    plain = name.rstrip("_") or name
    if plain == "index_copy":
        return None
    return next((reason for pattern, reason in _patterns() if plain == pattern or fnmatch.fnmatch(name, pattern)), None)
