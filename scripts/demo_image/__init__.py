"""What trains and measures oxlo-demo-image; scripts/train_demo_image.py is the door."""
