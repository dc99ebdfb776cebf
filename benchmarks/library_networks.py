"""The small random networks of libraries that `libraries.py` tries: specs, and those that are built in Python."""

from __future__ import annotations

from built_networks import BUILT

_TEXT = "hidden_size=32&num_hidden_layers=2&num_attention_heads=4&intermediate_size=48&vocab_size=99"
_BERT = f"{_TEXT}&max_position_embeddings=40"
_LLAMA = f"{_BERT}&num_key_value_heads=2"
_VIT = "hidden_size=32&num_hidden_layers=2&num_attention_heads=4&intermediate_size=48&image_size=32&patch_size=8"
_GPT = "vocab_size=99&n_positions=40&n_embd=32&n_layer=2&n_head=4&bos_token_id=1&eos_token_id=2"
_T5 = "vocab_size=99&d_model=32&d_kv=8&d_ff=48&num_layers=2&num_heads=4"
_BART = (
    "vocab_size=99&max_position_embeddings=40&d_model=32&encoder_layers=2&decoder_layers=2&encoder_attention_heads=4"
    "&decoder_attention_heads=4&encoder_ffn_dim=48&decoder_ffn_dim=48&pad_token_id=0"
)
_SOUND = f"{_TEXT}&conv_dim=16,16&conv_kernel=4,3&conv_stride=3,2&num_feat_extract_layers=2&num_conv_pos_embeddings=4"
_CLIP = (
    "text_config.hidden_size=32&text_config.num_hidden_layers=2&text_config.num_attention_heads=4"
    "&text_config.intermediate_size=48&text_config.vocab_size=99&text_config.max_position_embeddings=40"
    "&vision_config.hidden_size=32&vision_config.num_hidden_layers=2&vision_config.num_attention_heads=4"
    "&vision_config.intermediate_size=48&vision_config.image_size=32&vision_config.patch_size=8&projection_dim=16"
)
_STAGES = "hidden_sizes=16,24,32,40&depths=1,1,1,1"

TRANSFORMERS = (
    f"BertModel?{_BERT}",
    f"BertForSequenceClassification?{_BERT}",
    f"BertForMaskedLM?{_BERT}",
    f"BertForTokenClassification?{_BERT}",
    f"BertForQuestionAnswering?{_BERT}",
    f"RobertaForSequenceClassification?{_BERT}&pad_token_id=0",
    "DistilBertModel?vocab_size=99&max_position_embeddings=40&dim=32&n_layers=2&n_heads=4&hidden_dim=48",
    f"AlbertModel?{_BERT}&embedding_size=16",
    f"ElectraModel?{_BERT}&embedding_size=16",
    f"DebertaV2Model?{_BERT}",
    f"MPNetModel?{_BERT}",
    f"FNetModel?{_BERT.replace('&num_attention_heads=4', '')}",
    f"ModernBertModel?{_BERT}&pad_token_id=0&local_attention=4",
    f"XLMRobertaModel?{_BERT}&pad_token_id=0",
    f"CamembertModel?{_BERT}&pad_token_id=0",
    f"RoFormerModel?{_BERT}&embedding_size=32",
    f"MegatronBertModel?{_BERT}",
    f"NystromformerModel?{_BERT}&segment_means_seq_len=9&num_landmarks=9",
    f"LayoutLMModel?{_BERT}",
    f"ConvBertModel?{_BERT}&embedding_size=32",
    f"MobileBertModel?{_BERT}&embedding_size=16&intra_bottleneck_size=16&true_hidden_size=16",
    f"SqueezeBertModel?{_BERT}&embedding_size=32",
    f"GPT2LMHeadModel?{_GPT}",
    f"GPT2ForSequenceClassification?{_GPT}&pad_token_id=0",
    f"GPTJModel?{_GPT}&rotary_dim=4",
    f"GPTNeoXModel?{_BERT}",
    "OPTModel?vocab_size=99&hidden_size=32&num_hidden_layers=2&num_attention_heads=4&ffn_dim=48&word_embed_proj_dim=32",
    "BloomModel?vocab_size=99&hidden_size=32&n_layer=2&n_head=4&bos_token_id=1&eos_token_id=2",
    f"CodeGenModel?{_GPT}&rotary_dim=4",
    f"LlamaForCausalLM?{_LLAMA}",
    f"LlamaForSequenceClassification?{_LLAMA}&pad_token_id=0",
    f"MistralForCausalLM?{_LLAMA}&sliding_window=4",
    f"Qwen2ForCausalLM?{_LLAMA}",
    f"Qwen3ForCausalLM?{_LLAMA}&head_dim=8",
    f"Qwen2MoeModel?{_LLAMA}&num_experts=4&moe_intermediate_size=16&shared_expert_intermediate_size=16",
    f"MixtralModel?{_LLAMA}&num_local_experts=4",
    f"GemmaForCausalLM?{_LLAMA}&head_dim=8&pad_token_id=0",
    f"Gemma2Model?{_LLAMA}&head_dim=8&pad_token_id=0&query_pre_attn_scalar=8",
    f"Gemma3TextModel?{_LLAMA}&head_dim=8&pad_token_id=0",
    f"PhiModel?{_BERT}",
    f"Phi3Model?{_LLAMA}&pad_token_id=0",
    f"OlmoModel?{_LLAMA}",
    f"Olmo2Model?{_LLAMA}",
    f"GraniteModel?{_LLAMA}",
    f"StableLmModel?{_LLAMA}",
    f"Starcoder2Model?{_LLAMA}",
    f"CohereModel?{_LLAMA}&pad_token_id=0",
    f"SmolLM3ForCausalLM?{_LLAMA}&pad_token_id=0",
    f"HeliumModel?{_LLAMA}&head_dim=8&pad_token_id=0",
    f"Glm4Model?{_LLAMA}&head_dim=8&pad_token_id=0",
    f"NemotronModel?{_LLAMA}",
    "FalconModel?vocab_size=99&hidden_size=32&num_hidden_layers=2&num_attention_heads=4&ffn_hidden_size=48",
    "MambaModel?vocab_size=99&hidden_size=32&num_hidden_layers=2&state_size=4",
    f"T5ForConditionalGeneration?{_T5}",
    f"T5EncoderModel?{_T5}",
    f"MT5Model?{_T5}",
    f"UMT5Model?{_T5}",
    f"BartModel?{_BART}",
    f"BartForConditionalGeneration?{_BART}",
    f"PegasusModel?{_BART}",
    f"MarianModel?{_BART}&decoder_start_token_id=0",
    f"MBartModel?{_BART}",
    f"M2M100Model?{_BART}",
    f"ViTForImageClassification?{_VIT}",
    f"ViTModel?{_VIT}",
    f"DeiTForImageClassification?{_VIT}",
    f"BeitModel?{_VIT}",
    f"Dinov2Model?{_VIT.replace('&intermediate_size=48', '')}&mlp_ratio=2",
    f"Dinov2ForImageClassification?{_VIT.replace('&intermediate_size=48', '')}&mlp_ratio=2",
    f"ViTMSNModel?{_VIT}",
    f"IJepaModel?{_VIT}",
    f"YolosModel?{_VIT.replace('image_size=32', 'image_size=32,32')}",
    "SwinForImageClassification?image_size=32&patch_size=4&embed_dim=16&depths=2,2&num_heads=2,4&window_size=4",
    "Swinv2Model?image_size=32&patch_size=4&embed_dim=16&depths=2,2&num_heads=2,4&window_size=4",
    f"ConvNextForImageClassification?{_STAGES}",
    f"ConvNextV2Model?{_STAGES}",
    f"ResNetForImageClassification?{_STAGES}&embedding_size=8",
    f"RegNetModel?{_STAGES}&embedding_size=8&groups_width=8",
    "MobileNetV1Model?depth_multiplier=0.25",
    "MobileNetV2ForImageClassification?depth_multiplier=0.35",
    "SegformerForImageClassification?num_encoder_blocks=2&depths=1,1&hidden_sizes=16,32&num_attention_heads=1,2"
    "&sr_ratios=2,1&patch_sizes=7,3&strides=4,2&mlp_ratios=2,2",
    "PvtModel?image_size=32&depths=1,1,1,1&hidden_sizes=8,16,24,32&num_attention_heads=1,2,3,4",
    "PoolFormerModel?hidden_sizes=8,16,24,32&depths=1,1,1,1",
    "LevitModel?image_size=64&hidden_sizes=16,24,32&num_attention_heads=2,3,4&depths=1,1,1&key_dim=4,4,4",
    f"CLIPTextModel?{_BERT}&projection_dim=16&eos_token_id=2&bos_token_id=1",
    f"CLIPVisionModel?{_VIT}&projection_dim=16",
    f"CLIPModel?{_CLIP}",
    f"SiglipTextModel?{_BERT}",
    f"SiglipVisionModel?{_VIT}",
    f"WhisperModel?{_BART.replace('&max_position_embeddings=40', '')}&num_mel_bins=8&max_source_positions=10"
    "&max_target_positions=20&decoder_start_token_id=1&bos_token_id=1&eos_token_id=2",
    f"Wav2Vec2Model?{_SOUND}&num_conv_pos_embedding_groups=2&mask_time_prob=0.0&feat_extract_norm=layer",
    f"HubertModel?{_SOUND}&num_conv_pos_embedding_groups=2&mask_time_prob=0.0&feat_extract_norm=layer",
    f"ASTModel?{_VIT.replace('image_size=32&patch_size=8', 'patch_size=4')}&frequency_stride=4&time_stride=4"
    "&max_length=16&num_mel_bins=8",
)
YOLO = (
    *("yolo11n", "yolo11n-seg", "yolo11n-cls", "yolo11n-pose", "yolo12n", "yolo26n", "yolov3-tiny", "yolov5n"),
    *("yolov6n", "yolov8n", "yolov8n-seg", "yolov8n-cls", "yolov8n-pose", "yolov8n-obb", "yolov9t", "yolov10n"),
)
SEGMENTATION = (
    *(f"{kind}?encoder_name=resnet18" for kind in ("Unet", "UnetPlusPlus", "FPN", "PSPNet", "Linknet", "MAnet", "PAN")),
    *(f"{kind}?encoder_name=resnet18" for kind in ("DeepLabV3", "DeepLabV3Plus", "UPerNet")),
    "Unet?encoder_name=mobilenet_v2",
    "Unet?encoder_name=efficientnet-b0",
    "Unet?encoder_name=mit_b0",
    "FPN?encoder_name=densenet121",
)
NAMES = (
    *BUILT,
    *(f"smp:{name}" for name in SEGMENTATION),
    *(f"hf:{name}" for name in TRANSFORMERS),
    *(f"ultralytics:{name}.yaml" for name in YOLO),
)
