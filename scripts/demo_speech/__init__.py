"""What trains and measures oxlo-demo-speech; scripts/train_demo_speech.py is the door."""
